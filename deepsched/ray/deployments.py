"""What deployments of Ray Serve have in common: a CPU of Ray's for each core that is leased."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepsched.checks import check_integer
from deepsched.errors import OptionError

LEASE_SECONDS = 60.0
"""How long a worker waits for its cores: those of one that is ending may be taken still."""


def deployment_options(
    name: str,
    num_cores: int,
    num_replicas: int | str | None,
    defaults: Mapping[str, Any],
    given: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Options of serve.deployment.

    Args:
        name: of the deployment, unless one is given.
        num_cores: that each replica leases.
        num_replicas: how many, or "auto"; None: as `given` says.
        defaults, given: further options; those given count more.

    Raises:
        OptionError: num_cores is not positive, or `num_cpus` says otherwise.
    """
    num_cores = check_integer("num_cores", num_cores, 1, unit="cores of a replica")
    options: dict[str, Any] = {"name": name, **defaults, **(given or {})}
    if num_replicas is not None:
        options["num_replicas"] = num_replicas
    actor = dict(options.get("ray_actor_options") or {})
    if actor.setdefault("num_cpus", num_cores) != num_cores:
        raise OptionError(
            f"ray_actor_options: num_cpus is {actor['num_cpus']}, but a replica leases "
            f"{num_cores} cores; leave num_cpus out"
        )
    options["ray_actor_options"] = actor
    return options


def name_of(model: Any) -> str:
    """What a model is called: its file's name without the ending.

    >>> name_of("models/net.onnx"), name_of(b"a model")
    ('net', 'model')
    """
    return Path(model).stem if isinstance(model, (str, Path)) else "model"
