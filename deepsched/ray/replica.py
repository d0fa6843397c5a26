"""Ray Serve: replicas that hold cores of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray import serve

from deepsched.engine import Engine
from deepsched.ray.deployments import LEASE_SECONDS, deployment_options, name_of
from deepsched.ray.health import PROBE_SECONDS, Health

_IN_FLIGHT = 64
"""Requests that a replica takes at a time: enough that a small model's can be run together. Ray's
default of 5 would leave them in the router's queue."""


class Replica:
    """One engine on leased cores; `application` makes a deployment of it.

    Args:
        model, engine: see Engine.
        num_cores: how many cores it leases on its node.
    """

    def __init__(self, model: Any, num_cores: int = 1, **engine: Any) -> None:
        engine = {"scheduler": "elastic", "cores": "lease", **engine}
        engine.setdefault("lease_timeout", LEASE_SECONDS)
        self._engine = Engine(model, num_cores=num_cores, **engine)
        self._health = Health(name_of(self._engine.model_path), self._engine.context)

    async def infer(
        self, inputs: Any, *, timeout: float | None = None, priority: int = 0
    ) -> dict[str, Any]:
        """The outputs by name. A caller that is cancelled withdraws its request, or stops its run.

        Args:
            inputs: a list of arrays, or a mapping by name, as `Engine.run` takes them.
            timeout: seconds from here on; it counts while the request waits and while it runs.
            priority: 1, 0 or -1; see Engine.run.

        Raises:
            DeadlineExceeded: the timeout expired.
            InputError: the inputs do not fit the model.
        """
        outputs = await self._engine.run_async(inputs, timeout=timeout, priority=priority)
        return dict(zip(self._engine.output_names, outputs, strict=True))

    async def stats(self) -> Any:
        """See Engine.stats."""
        return self._engine.stats()

    async def check_health(self) -> None:
        """Called by Ray; an exception has the replica replaced."""
        await self._health.check(self._ask)

    async def _ask(self) -> None:
        inputs = self._engine.generate_random_inputs()
        await self._engine.run_async(inputs, timeout=PROBE_SECONDS, priority=1)

    async def __del__(self) -> None:
        """Called by Ray once the replica has drained: gives its cores back."""
        if hasattr(self, "_engine"):
            await asyncio.to_thread(self._engine.close)


def application(
    model: Any,
    *,
    num_cores: int = 1,
    num_replicas: int | str | None = None,
    deployment: Mapping[str, Any] | None = None,
    **engine: Any,
) -> serve.Application:
    """A model as an application of Ray Serve: serve.run(application("model.onnx", num_cores=4)).

    Each replica leases `num_cores` cores on the node where Ray places it, and shares the compiled
    form of the model with the other replicas there.

    Args:
        model: as in Engine; a path must exist on every node. Bytes travel with the application.
        num_cores: cores of each replica.
        num_replicas: how many, or "auto"; see Ray Serve's deployment.
        deployment: further options of Ray Serve's deployment, such as `name`,
            `autoscaling_config`, `max_ongoing_requests`. `ray_actor_options` may add resources;
            `num_cpus` is `num_cores` and cannot be another.
        engine: Engine's further options.

    Raises:
        OptionError: num_cores is not positive, or `num_cpus` says otherwise.
    """
    defaults = {"max_ongoing_requests": _IN_FLIGHT}
    options = deployment_options(name_of(model), num_cores, num_replicas, defaults, deployment)
    return serve.deployment(**options)(Replica).bind(model, num_cores, **engine)
