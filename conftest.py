"""What pytest is not to look into: modules whose extra is not installed here."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("msgspec") and find_spec("grpc") else ["deepsched/server"]
