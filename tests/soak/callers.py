"""Callers of all ways in: each call ends once, with its own answer or an error that it allows."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

from deepsched.errors import ClosedError, DeadlineExceeded, InferenceError, QueueFull
from tests.soak.fleet import Fleet, Served
from tests.soak.kinds import Call
from tests.soak.ledger import Ledger

_PATIENCE_S = 60
"""After which an answer counts as lost."""

_ENDS: dict[type[BaseException], str] = {
    InferenceError: "failed",
    DeadlineExceeded: "expired",
    CancelledError: "cancelled",
    asyncio.CancelledError: "cancelled",
    ClosedError: "closed",
    QueueFull: "rejected",
}


class Caller:
    """One thread that calls the engines of a fleet in one way."""

    def __init__(self, fleet: Fleet, rng: random.Random, ledger: Ledger) -> None:
        self._slots = fleet.slots
        self._rng = rng
        self._ledger = ledger

    def until(self, is_over: threading.Event, way: Callable[[Caller], None], least: int) -> None:
        """Calls in that way `least` times, then until it `is_over`."""
        count = 0
        while count < least or not is_over.is_set():
            way(self)
            self._ledger.count(f"bursts of {way.__name__.removeprefix('by_')}")
            count += 1

    def _pick(self) -> tuple[Served, set[str]]:
        """An engine, and the ends that any call of it may have."""
        slot = self._rng.choice(self._slots)
        return slot.current, {"closed"} if slot.may_close else set()

    def _limits(self, allowed: set[str]) -> dict[str, Any]:
        """Random options of a call; adds the ends that they bring to `allowed`."""
        timeout = self._rng.choice([None, None, 1e-5, 1e-3, 0.1, _PATIENCE_S])
        if timeout is not None:
            allowed.add("expired")
        return {
            "timeout": timeout,
            "priority": self._rng.choice([-1, 0, 0, 1]),
            "shrink_memory": self._rng.choice([None, None, None, True]),
        }

    def _settle(
        self, served: Served, call: Call, get: Callable[[], list[Any]], allowed: set[str]
    ) -> str:
        """Gets the outputs of a call and looks whether they are its own. Returns how it ended."""
        try:
            outputs = get()
        except tuple(_ENDS) as error:
            return self._judge(served, call, error, allowed)
        if call.output is None:
            self._ledger.breach(f"a call of {served.engine} did not fail")
        elif not served.kind.is_right(call, outputs):
            self._ledger.breach(
                f"a wrong answer of {served.engine} of {served.kind.name}: {outputs}, expected "
                f"{call.output}"
            )
        return "done"

    def _judge(self, served: Served, call: Call, error: BaseException, allowed: set[str]) -> str:
        """How a call ended that raised `error`, and whether it may."""
        end = next(end for kind, end in _ENDS.items() if isinstance(error, kind))
        if end not in allowed and not (end == "failed" and call.output is None):
            self._ledger.breach(f"a call of {served.engine} ended as {end}: {error}")
        return end

    # --- Ways -------------------------------------------------------------------------------

    def by_run(self) -> None:
        served, allowed = self._pick()
        for _ in range(20):
            call, limits = served.kind.call(self._rng), self._limits(allowed)
            run = partial(self._rng.choice([served.engine.run, served.engine]), call.inputs)
            end = self._settle(served, call, partial(run, **limits), allowed)
            served.tally.note(end, is_certain=end in ("done", "failed", "expired"))

    def by_future(self) -> None:
        served, allowed = self._pick()
        futures = []
        for _ in range(self._rng.choice([1, 5, 20])):
            call, ends = served.kind.call(self._rng), set(allowed)
            limits = self._limits(ends)
            block = self._rng.random() < 0.7
            try:
                future = served.engine.submit(call.inputs, block=block, **limits)
            except tuple(_ENDS) as error:
                end = self._judge(served, call, error, ends | (set() if block else {"rejected"}))
                # One whose timeout expires before there is room counts as a request.
                served.tally.note(end, is_certain=end == "expired")
            else:
                futures.append((future, call, ends))
        for future, call, ends in futures:
            if self._rng.random() < 0.2:
                future.cancel()
                ends.add("cancelled")
            end = self._settle(served, call, partial(future.result, _PATIENCE_S), ends)
            served.tally.note(end, is_certain=True)

    def by_loop(self) -> None:
        served, allowed = self._pick()

        async def one() -> None:
            call, ends = served.kind.call(self._rng), set(allowed)
            limits = {} if plain else self._limits(ends)  # plain ones may run together
            block = self._rng.random() < 0.8
            if not block:
                ends.add("rejected")
            request = served.engine.run_async(call.inputs, block=block, **limits)
            task = asyncio.ensure_future(request)
            if self._rng.random() < 0.2:
                await asyncio.sleep(0)
                task.cancel()
                ends.add("cancelled")
            await asyncio.wait([task], timeout=_PATIENCE_S)
            end = self._settle(served, call, task.result, ends)
            served.tally.note(end, is_certain=end in ("done", "failed"))

        async def main() -> None:
            for _ in range(2):
                await asyncio.gather(*(one() for _ in range(crowd)))

        plain = self._rng.random() < 0.5
        crowd = self._rng.choice([1, 4, 16])
        asyncio.run(main())

    def by_map(self) -> None:
        served, allowed = self._pick()
        fails = self._rng.random() < 0.3
        calls = [served.kind.call(self._rng, may_fail=fails) for _ in range(30)]
        ordered = self._rng.random() < 0.7
        leaves_after = self._rng.choice([5, 30, 30])
        num_taken = 0

        def items() -> Any:
            nonlocal num_taken
            for call in list(calls):
                num_taken += 1
                yield call.inputs

        results = served.engine.map(
            items(),
            in_flight=self._rng.choice([None, 1, 8]),
            ordered=ordered,
            priority=self._rng.choice([-1, 0, 1]),
        )
        num_certain = 0
        for index in range(leaves_after):
            if ordered:
                end = self._settle(served, calls[index], lambda: next(results), allowed)
            else:
                end = self._settle_any(served, calls, lambda: next(results), allowed)
            if end in ("done", "failed"):
                served.tally.note(end, is_certain=True)
                num_certain += 1
            if end != "done":
                break
        results.close()
        served.tally.note("given up by a map", False, num_taken - num_certain)

    def _settle_any(
        self, served: Served, calls: list[Call], get: Callable[[], list[Any]], allowed: set[str]
    ) -> str:
        """The outputs of any one of `calls`, which is taken from them."""
        try:
            outputs = get()
        except InferenceError:
            failing = [call for call in calls if call.output is None]
            if not failing:
                self._ledger.breach(f"a map of {served.engine} failed")
            return "failed"
        except ClosedError as error:
            if "closed" not in allowed:
                self._ledger.breach(f"a map of {served.engine} was closed: {error}")
            return "closed"
        for call in calls:
            if call.output is not None and served.kind.is_right(call, outputs):
                calls.remove(call)
                return "done"
        self._ledger.breach(f"a wrong answer in a map of {served.engine}: {outputs}")
        return "done"

    def by_batch(self) -> None:
        served, allowed = self._pick()
        if served.kind.name != "pick":
            return self.by_run()
        call = served.kind.call(self._rng, may_fail=False)
        end = self._settle(served, call, lambda: served.engine.batched_run(call.inputs), allowed)
        # A part for each stream, of which there may be more or fewer by now.
        served.tally.note(f"{end}, as parts of a batch", False, len(call.output))
        return None

    def by_mapped_run(self) -> None:
        served, allowed = self._pick()
        call = served.kind.call(self._rng)
        names = served.engine.input_names
        named = dict(zip(names, call.inputs, strict=True))
        end = self._settle(
            served, call, lambda: list(served.engine.mapped_run(named).values()), allowed
        )
        served.tally.note(end, is_certain=end in ("done", "failed"))


WAYS = (
    Caller.by_run,
    Caller.by_future,
    Caller.by_loop,
    Caller.by_map,
    Caller.by_batch,
    Caller.by_mapped_run,
)
