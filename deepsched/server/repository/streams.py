"""Streams of the server: one set for all models, and cores of their own for those that ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepsched.checks import check_integer
from deepsched.context import Context
from deepsched.errors import OptionError, StreamConfigError
from deepsched.machine.partition import partition
from deepsched.machine.topology import Topology
from deepsched.server.repository.model_options import LEASE_OPTIONS


class Streams:
    """The contexts that models are opened on.

    Args:
        shared: options of the Context that all models share but those in `own`.
        own: by model, the options of a Context of its own; `num_cores` is one of them. These cores
            are taken from the end of the machine, or leased if the shared ones are, and no other
            model runs on them.

    Raises:
        OptionError, StreamConfigError: the streams are not possible on this machine.
        LeaseError: too few cores are free for them.
    """

    def __init__(self, shared: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]) -> None:
        machine = Topology.detect()
        cores = partition(machine, num_streams=1).streams[0].cores  # as many as its quota has
        # What others have is not known before: a lease finds cores by itself.
        lease = {name: shared[name] for name in LEASE_OPTIONS if name in shared}
        is_leased = shared.get("cores") == "lease"
        self._own: dict[str, Context] = {}
        try:
            for name, options in own.items():
                if "num_cores" not in options:
                    raise OptionError(
                        f"model {name!r}: {', '.join(options)} is for a model with cores of its "
                        "own; give num_cores too, or set it for all models"
                    )
                if len(cores) < 2:
                    raise OptionError(
                        f"model {name!r}: no core is left for it, since the shared streams keep one"
                    )
                count = check_integer(
                    f"num_cores of model {name!r}",
                    options["num_cores"],
                    1,
                    len(cores) - 1,
                    unit="the shared streams keep one core",
                )
                taken, cores = cores[-count:], cores[:-count]
                part = None if is_leased else Topology(taken, machine.cpu_quota, is_local=True)
                self._own[name] = Context(topology=part, **{**lease, **options})
            rest = Topology(cores, machine.cpu_quota, is_local=True) if own else None
            try:
                self.shared = Context(
                    topology=None if is_leased else rest, **{"scheduler": "elastic", **shared}
                )
            except StreamConfigError as error:
                if not own:
                    raise
                raise StreamConfigError(
                    f"{error}; the other cores are those of {', '.join(map(repr, own))}"
                ) from None
        except BaseException:
            self.close()
            raise

    def of(self, name: str) -> Context:
        """The context that the model `name` is opened on."""
        return self._own.get(name, self.shared)

    @property
    def contexts(self) -> tuple[Context, ...]:
        """All: the shared one, then those of single models."""
        return self.shared, *self._own.values()

    @property
    def names(self) -> tuple[str, ...]:
        """What to call each of `contexts`: shared, or the model whose it is."""
        return "shared", *(f"own:{name}" for name in self._own)

    def close(self) -> None:
        """Closes all contexts, and with them what is still open on them."""
        for context in (*self._own.values(), getattr(self, "shared", None)):
            if context is not None:
                context.close()
