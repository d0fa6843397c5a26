"""The contexts and engines of one round, and whether their counts are what callers saw."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from deepsched import Context, Engine
from deepsched.errors import LeaseError
from deepsched.scheduling.stats import Stats
from tests.soak.kinds import Kind
from tests.soak.ledger import Ledger, Tally
from tests.support.contexts import unpinned

_PATIENCE_S = 30
_SCHEDULERS = ("single_stream", "multi_stream", "elastic")


@dataclass
class Served:
    """An engine, and how its calls ended."""

    engine: Engine
    kind: Kind
    tally: Tally = field(default_factory=Tally)


class Slot:
    """An engine that callers find; where it `may_close`, another takes its place at any moment."""

    def __init__(self, open_engine: Callable[[], Served], may_close: bool) -> None:
        self._open = open_engine
        self.may_close = may_close
        self.current = open_engine()
        self.all = [self.current]

    def reopen(self) -> None:
        """Another engine comes, then this one is closed, whoever uses it."""
        old = self.current
        self.current = self._open()
        self.all.append(self.current)
        old.engine.close()


class Fleet:
    """Two contexts with two or three engines each, and an engine with a context of its own."""

    def __init__(self, kinds: list[Kind], rng: random.Random, ledger: Ledger) -> None:
        self._ledger = ledger
        self.contexts = [self._context(rng) for _ in range(2)]
        self.slots: list[Slot] = []
        for context in self.contexts:
            for kind in rng.sample(kinds, rng.choice([2, 3])):
                options = {"context": context}
                self._add(kind, options, may_close=rng.random() < 0.4)
        own = {"scheduler": rng.choice(_SCHEDULERS), "cache_dir": rng.choice([None, "default"])}
        if own["cache_dir"] == "default":
            del own["cache_dir"]
        self._add(rng.choice(kinds), own, may_close=True)

    def _context(self, rng: random.Random) -> Context:
        """On this machine's cores, pinned, or on as many as one likes."""
        scheduler = rng.choice(_SCHEDULERS)
        queue_capacity = rng.choice([2, 8, 1024])
        num_streams = rng.randrange(1, 6)
        place = rng.choice(["synthetic", "shared", "lease", "follow"])
        self._ledger.count(f"contexts: {scheduler}, {place}")
        if place == "synthetic":
            return unpinned(num_streams, scheduler, queue_capacity=queue_capacity)
        if place == "lease":
            try:
                return Context(1, scheduler=scheduler, queue_capacity=queue_capacity, cores="lease")
            except LeaseError:  # the other context has them
                self._ledger.count("leases refused")
        follow = "cpuset" if place == "follow" else None
        return Context(
            scheduler=scheduler, queue_capacity=queue_capacity, cores="share", follow=follow
        )

    def _add(self, kind: Kind, options: dict, may_close: bool) -> None:
        def open_engine() -> Served:
            engine = Engine(kind.path, None, **kind.options, **options)
            self._ledger.count("engines opened")
            return Served(engine, kind)

        self.slots.append(Slot(open_engine, may_close))

    def all_served(self) -> Iterator[Served]:
        """Every engine that the round has had."""
        for slot in self.slots:
            yield from slot.all

    def close(self, rng: random.Random) -> None:
        """Once nobody calls any more: looks whether all that was accepted has ended, and was
        counted as its callers saw it."""
        for context in self.contexts:
            if not wait_until(lambda context=context: is_idle(context)):
                self._ledger.breach(f"something still waits or runs: {context.stats()}")
        for slot in self.slots:
            self._ledger.guarded("calm calls", self._call_in_calm, slot.current, rng)
        engines = list(self.all_served())
        rng.shuffle(engines)
        for served in engines:
            served.engine.close()
            check_counts(served, self._ledger)
        for context in self.contexts:
            self._check_sum(context)
            context.close()

    def _check_sum(self, context: Context) -> None:
        """What a context counts is what its engines count, also those that were closed early."""
        engines = [it.engine for it in self.all_served() if it.engine.context is context]
        counted = Counter(_counts(context.stats()))
        counted.subtract(sum((Counter(_counts(it.stats())) for it in engines), Counter()))
        if any(counted.values()):
            self._ledger.breach(f"{context} counts other than its engines: {dict(counted)}")

    def _call_in_calm(self, served: Served, rng: random.Random) -> None:
        """After all that came before, a call is still answered, and counted as one."""
        wait_until(lambda: is_idle(served.engine.context))
        before = served.engine.stats().done
        for way in (_by_run, _by_future, _by_loop):
            call = served.kind.call(rng, may_fail=False)
            outputs = way(served.engine, call.inputs)
            served.tally.note("done", is_certain=True)
            if not served.kind.is_right(call, outputs):
                self._ledger.breach(f"a wrong answer of {served.engine} in calm")
        done = served.engine.stats().done - before
        if done != 3:
            self._ledger.breach(f"{served.engine} counts 3 calls as {done}")


def _by_run(engine: Engine, inputs: list[Any]) -> list[Any]:
    return engine.run(inputs)


def _by_future(engine: Engine, inputs: list[Any]) -> list[Any]:
    return engine.submit(inputs).result(_PATIENCE_S)


def _by_loop(engine: Engine, inputs: list[Any]) -> list[Any]:
    """The first call of a loop also frees what ended after its own loop."""
    return asyncio.run(engine.run_async(inputs))


def is_idle(context: Context) -> bool:
    """Whether nothing waits, and no stream is taken. A worker that was woken for nothing has yet to
    leave."""
    return context.stats().queue_depth == 0 and context._shared.dispatcher.num_busy == 0


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within half a minute."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        threading.Event().wait(0.001)
    return True


def check_counts(served: Served, ledger: Ledger) -> None:
    """Of an engine that is closed, so that nothing changes any more.

    A cancel or a timeout may come when the run is already done, and then counts as such; so ends
    are bounds. How many requests there were, and how many were refused, is exact as far as the
    callers can know it.
    """
    stats, tally = served.engine.stats(), served.tally
    seen = tally.ends
    total = stats.done + stats.failed + stats.expired + stats.cancelled
    early = seen["expired"] + seen["cancelled"] + tally.num_uncertain
    agrees = {
        "accepted": tally.num_certain <= total <= tally.num_certain + tally.num_uncertain,
        "rejected": stats.rejected == seen["rejected"],
        "done": seen["done"] <= stats.done <= seen["done"] + early,
        "failed": seen["failed"] <= stats.failed <= seen["failed"] + early,
        "queue": stats.queue_depth_max <= stats.queue_capacity,
    }
    wrong = [what for what, is_so in agrees.items() if not is_so]
    if wrong:
        ledger.breach(
            f"{', '.join(wrong)}: {served.engine} of {served.kind.name} counts {_counts(stats)}, "
            f"its callers saw {dict(seen)}, {tally.num_certain} accepted for sure, "
            f"{tally.num_uncertain} perhaps"
        )
    for end, number in seen.items():
        ledger.count(f"calls {end}", number)


def _counts(stats: Stats) -> dict[str, int]:
    names = ("done", "failed", "expired", "cancelled", "rejected")
    return {name: getattr(stats, name) for name in names}
