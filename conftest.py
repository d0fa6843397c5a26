"""What pytest is not to look into: stand-ins, and what needs an extra that is not there."""

from __future__ import annotations

from importlib.util import find_spec

_HAS_SERVE = all(find_spec(name) for name in ("grpc", "msgspec", "simdjson", "uvloop"))

collect_ignore = ["tests/peers/stand_ins"]
if not _HAS_SERVE:
    collect_ignore += ["deepsched/server", "tests/server", "tests/soak/server.py"]
if not find_spec("ray"):
    collect_ignore += ["deepsched/ray", "tests/ray"]
for name in ("dask", "pyspark"):
    if not find_spec(name):
        collect_ignore.append(f"examples/{name.removeprefix('py')}_predict.py")
