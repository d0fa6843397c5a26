"""Which rules serve a model here: each is tried when the model is compiled, and kept if the outputs
agree with the plain model's and the runs are shorter.

One session is open at a time, so that memory holds one copy of the weights. Whether the machine was
the same for two of them is told by a fixed piece of work before and after each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from time import perf_counter
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx

from deepsched.errors import InferenceError, InputError, ModelError, OptionError
from deepsched.machine.partition import Stream
from deepsched.models.rewrites.agreement import all_of, compare
from deepsched.models.rewrites.catalog import rewrite
from deepsched.models.rewrites.graph import ReadTensor, copy_without_weights
from deepsched.models.rewrites.made_up import (
    VARIANTS,
    fix_sizes,
    has_open_batch,
    nudged,
    sizes_to_try,
)
from deepsched.models.rewrites.rule import Rule
from deepsched.models.rewrites.running import Trial
from deepsched.models.rewrites.timing import FEWEST_QUIET, TimedRuns, Timing, gain
from deepsched.models.rewrites.tried import Tried
from deepsched.runtime.session import Session
from deepsched.runtime.values import ValueInfo

logger = logging.getLogger("deepsched")

_BUDGET_OF_COMPILE = 2.0
"""A trial may take this many times as long as opening the plain model,"""

_LEAST_BUDGET_S, _MOST_BUDGET_S = 0.25, 10.0
"""but at least and at most so long. A step that has begun is ended."""

_SHARE_OF_PLAIN_STEP = 0.9
"""That a step with a rewritten form takes at most: its inputs are there already."""

_SAMPLING_S = 0.05
"""To time runs of one form on one stream; longer if a few runs take longer."""

_LONG_RUN_S, _TOO_LONG_RUN_S = 0.5, 2.0
"""Longer runs are timed once, and compared on one input only; or not tried at all."""

_LEAST_GAIN = 0.01

_BATCH = 3
"""Beside 1, where the batch is open."""

_LATE = "the time to try rules was over"


class Choice(NamedTuple):
    """The rules to apply, and how all that fit the model fared."""

    rules: tuple[Rule, ...]
    tried: tuple[Tried, ...]


OpenForm = Callable[[onnx.ModelProto | None, Mapping[str, str], Stream], Session]
"""Opens a rewritten model, with additional session config entries; for None, the model as it is."""


def choose(
    load: Callable[[], onnx.ModelProto],
    read: ReadTensor,
    rules: Sequence[Rule],
    open_form: OpenForm,
    streams: Sequence[Stream],
    is_pinned: bool,
) -> Choice:
    """Tries the rules that fit a model.

    Args:
        load: the model, which may be changed.
        read: gives an initializer's values.
        streams: those to time runs on; outputs are compared on the first.
        is_pinned: whether their threads are.

    Raises:
        ModelError, ThreadError: the model as it is cannot be opened.
    """
    model = load()
    try:
        counts = rewrite(model, rules, read).counts
    except Exception as error:
        # Nobody has checked the graph yet: of one that is not valid, ONNX Runtime tells why.
        open_form(None, {}, streams[0])
        logger.warning("the model is used without rewrites; looking for them failed: %r", error)
        return Choice((), ())
    if not counts:
        return Choice((), ())
    logger.info("trying rewrites of the model: %s", ", ".join(counts))
    fitting = [rule for rule in rules if rule.name in counts]
    trial = Trial(is_pinned)
    runner = _Runner(trial, open_form, streams, copy_without_weights(model))
    del model
    chooser = _Chooser(load, read, runner, counts)
    return trial.in_thread(lambda: chooser.choose(fitting))


class _Untried(Exception):
    """The model cannot be tried on made-up inputs."""


class _Visit(NamedTuple):
    """What a form of the model showed."""

    outputs: list[Any]
    """For each of the inputs."""
    timings: list[Timing]
    """By stream."""


class _Found(NamedTuple):
    """What a step of the trial found."""

    visit: _Visit | None = None
    moved: float | None = None
    gain: float | None = None
    why_not: str = ""
    counts: Mapping[str, int] = MappingProxyType({})
    """Places of each rule in the model as it is kept; empty if it is not."""


class _Runner:
    """Opens forms of one model, and runs them on the same made-up inputs."""

    def __init__(
        self,
        trial: Trial,
        open_form: OpenForm,
        streams: Sequence[Stream],
        skeleton: onnx.ModelProto,
    ) -> None:
        self._trial = trial
        self._open_form = open_form
        self._streams = streams
        self._skeleton = skeleton
        self._inputs: list[list[Any]] = []
        self._is_slow = False

    def visit(self, model: onnx.ModelProto | None, config: Mapping[str, str]) -> _Visit:
        """Runs the form on all inputs.

        Raises:
            ModelError, InferenceError, InputError: it does not open, or not run.
            _Untried: no inputs can be made up, or the plain model's outputs vary.
        """
        outputs: list[Any] = []
        timings: list[Timing] = []
        for stream in self._streams:
            with self._running(model, config, stream) as (infos, runs):
                if not self._inputs:
                    self._inputs = self._make_inputs(infos, runs)
                if not outputs:
                    outputs = [runs.run(inputs) for inputs in self._inputs]
                if model is None and not self._are_same_again(outputs, runs):
                    raise _Untried("outputs vary from run to run")
                fewest = 1 if self._is_slow else FEWEST_QUIET
                timings.append(runs.timing(self._inputs[-1], _SAMPLING_S, fewest))
        return _Visit(outputs, timings)

    def nudged_outputs(self) -> list[Any]:
        """The plain model's, for inputs that are moved by one rounding."""
        rng = np.random.default_rng(1)
        with self._running(None, {}, self._streams[0]) as (_, runs):
            return [runs.run([nudged(rng, it) for it in inputs]) for inputs in self._inputs]

    def _are_same_again(self, outputs: list[Any], runs: TimedRuns) -> bool:
        return compare(outputs[-1], runs.run(self._inputs[-1])).has_same_bits

    def _make_inputs(self, infos: Sequence[ValueInfo], runs: TimedRuns) -> list[list[Any]]:
        rng = np.random.default_rng(0)
        why_not = "its inputs cannot be made up"
        for size in sizes_to_try(infos, self._skeleton):
            try:
                fixed = fix_sizes(infos, 1, size)
                found = [[make(rng, info) for info in fixed] for make in VARIANTS]
                began = perf_counter()
                runs.run(found[0])
            except (InferenceError, InputError, OptionError) as error:
                why_not = f"its inputs cannot be made up: {error}"
                continue
            run_s = perf_counter() - began
            if run_s > _TOO_LONG_RUN_S:
                raise _Untried(f"a run of the model takes {run_s:.1f} s")
            if run_s > _LONG_RUN_S:
                self._is_slow = True
                return found[:1]
            if has_open_batch(infos):
                # Nodes may rely on one size.
                with suppress(InferenceError, InputError, OptionError):
                    larger = [VARIANTS[0](rng, info) for info in fix_sizes(infos, _BATCH, size)]
                    runs.run(larger)
                    found.insert(0, larger)  # first, where its time does not count
            runs.forget()
            return found
        raise _Untried(why_not)

    def _running(
        self, model: onnx.ModelProto | None, config: Mapping[str, str], stream: Stream
    ) -> AbstractContextManager[tuple[list[ValueInfo], TimedRuns]]:
        """(the session's inputs, what runs it)."""
        return self._trial.running(self._open_form(model, config, stream), stream)


class _Chooser:
    """Tries rules one after another, or together where time is short."""

    def __init__(
        self,
        load: Callable[[], onnx.ModelProto],
        read: ReadTensor,
        runner: _Runner,
        counts: Mapping[str, int],
    ) -> None:
        self._load = load
        self._read = read
        self._runner = runner
        self._counts = counts

    def choose(self, rules: Sequence[Rule]) -> Choice:
        began = perf_counter()
        try:
            plain = best = self._runner.visit(None, {})
        except _Untried as error:
            return Choice((), tuple(self._report(rules, _Found(why_not=str(error)))))
        except (InferenceError, InputError) as error:
            why_not = f"its inputs cannot be made up: {error}"
            return Choice((), tuple(self._report(rules, _Found(why_not=why_not))))
        plain_s = perf_counter() - began
        step_s = _SHARE_OF_PLAIN_STEP * plain_s
        budget_s = min(_MOST_BUDGET_S, max(_LEAST_BUDGET_S, _BUDGET_OF_COMPILE * plain_s))
        end = perf_counter() + budget_s
        kept: list[Rule] = []
        tried: list[Tried] = []
        pending = [[rule] for rule in rules]
        was_split = False
        while pending:
            now = perf_counter()
            if (tried or was_split) and now > end:
                late = _Found(why_not=_LATE)
                tried += [it for group in pending for it in self._report(group, late)]
                break
            if now + step_s * len(pending) > end and not was_split:
                pending = [[rule for group in pending for rule in group]]
            group = pending.pop(0)
            found = self._try(kept, group, plain, best)
            if found.why_not and len(group) > 1 and perf_counter() < end:
                pending, was_split = [[rule] for rule in group], True  # one may be to blame
                continue
            tried += self._report(group, found)
            if found.visit is not None:
                best, kept = found.visit, [*kept, *group]
        return Choice(tuple(kept), tuple(tried))

    def _try(
        self, kept: Sequence[Rule], group: Sequence[Rule], plain: _Visit, best: _Visit
    ) -> _Found:
        """Runs the model with the rules of `group` on top of those that are kept."""
        model = self._load()
        counts, config = rewrite(model, [*kept, *group], self._read)
        try:
            visit = self._runner.visit(model, config)
        except (ModelError, InferenceError, InputError) as error:
            return _Found(why_not=f"the rewritten model does not run: {error}")
        del model
        if all(rule.is_exact for rule in group):
            moved = all_of(map(compare, best.outputs, visit.outputs))
            if not moved.has_same_bits:
                return _Found(moved=moved.by, why_not="outputs are not the same bits")
        else:
            moved = all_of(map(compare, plain.outputs, visit.outputs))
            if not moved.is_allowed:
                aside = self._runner.nudged_outputs()
                moved = all_of(map(compare, plain.outputs, visit.outputs, aside))
            if not moved.is_allowed:
                return _Found(moved=moved.by, why_not="outputs move beyond float32's accuracy")
        saved = _least_gain(best, visit)
        if saved is not None and saved < _LEAST_GAIN:
            return _Found(moved=moved.by, gain=saved, why_not="it is not faster here")
        return _Found(visit, moved.by, saved, counts=counts)

    def _report(self, group: Sequence[Rule], found: _Found) -> list[Tried]:
        return [
            Tried(
                rule=rule.name,
                num_places=found.counts.get(rule.name, self._counts[rule.name]),
                is_exact=rule.is_exact,
                is_kept=not found.why_not,
                gain=found.gain,
                moved=found.moved,
                together_with=tuple(it.name for it in group if it is not rule),
                why_not=found.why_not,
            )
            for rule in group
        ]


def _least_gain(before: _Visit, candidate: _Visit) -> float | None:
    """On the stream where it is least; None if it is unknown on one."""
    gains = [gain(*it) for it in zip(before.timings, candidate.timings, strict=True)]
    known = [it for it in gains if it is not None]
    return min(known) if len(known) == len(gains) else None
