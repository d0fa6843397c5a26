"""An asyncio worker: takes jobs, runs the model on each, reports each result. Stops in order.

    python -m examples.asyncio_worker --demo 100
    ls pictures/*.npy | python -m examples.asyncio_worker --model model.onnx > results.jsonl

A job is the path of a .npy file with the model's one input, a line of stdin each. A result is a
line of JSON on stdout: the job, and its top class or what went wrong. `--demo N` makes N jobs up,
for SqueezeNet of the onnx wheel. Replace `read_lines` and `print_result` by those of your broker.

At most `--concurrency` jobs are under way, so a slow model slows the reading of stdin down, and
nothing piles up. SIGTERM and Ctrl-C stop it: no new jobs are taken, those under way get `--grace`
seconds, then they are cancelled and reported as such, so that a broker can hand them to another
worker. A second signal does not wait for them. Reports are never cut short: give your broker's
client a time limit.

Exit codes: 0, no job failed; 1, some did; 2, bad arguments; 3, a result could not be written.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np

from deepsched import Engine
from deepsched.benchmark import bundled_model
from deepsched.errors import ClosedError, DeadlineExceeded, DeepschedError, ForkError
from examples.decoding import read_npy


class Job(NamedTuple):
    """What is to be done."""

    name: str
    load: Callable[[], Any]
    """Returns the input. What it raises is the job's error."""


class Result(NamedTuple):
    """How a job ended: with outputs, or with an error."""

    name: str
    outputs: list[Any] | None
    error: str | None


END = None
"""In the queue: there are no more jobs."""


class Worker:
    """Runs the jobs of a queue, so many at a time.

    Args:
        engine: what runs them.
        jobs: where they come from; END ends the work.
        on_result: is awaited with the result of each job that was taken, once. It is not
            cancelled, however long it takes and whatever signals come.
        concurrency: how many jobs to have under way. Twice the streams keep all of them busy.
        timeout: seconds for each run.
        grace: seconds that jobs under way get to end after `stop`.
    """

    def __init__(
        self,
        engine: Engine,
        jobs: asyncio.Queue[Job | None],
        on_result: Callable[[Result], Awaitable[None]],
        concurrency: int,
        timeout: float,
        grace: float,
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._on_result = on_result
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout = timeout
        self._grace = grace
        self._stopping = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()  # jobs, with their reports
        self._runs: set[asyncio.Task[Result]] = set()  # the part of them that may be cancelled
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Takes no more jobs. The second call cancels those under way, but not their reports."""
        if self._stopping.is_set():
            self._grace = 0.0  # also for a job that is being taken this moment
            self._cancel_runs()
        self._stopping.set()

    async def work(self) -> None:
        """Returns when the jobs have ended, or after `stop` when those under way have.

        End it with `stop`: cancelled, it would leave jobs behind. Raises what `on_result` raises,
        since a result that cannot be reported ends the work; and ClosedError of an engine that
        is of no more use.
        """
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            while await self._is_first(self._slots.acquire(), stopping):
                job = await self._next(stopping)
                if job is END:
                    break
                self._start(job)
            await self._wait_for_the_rest(stopping)
        finally:
            stopping.cancel()
        if self._failure is not None:
            raise self._failure

    async def _next(self, stopping: asyncio.Future[Any]) -> Job | None:
        get = asyncio.ensure_future(self._jobs.get())
        await asyncio.wait([get, stopping], return_when=asyncio.FIRST_COMPLETED)
        # What was taken from the queue is done, whether or not we were told to stop meanwhile.
        return get.result() if get.done() or not get.cancel() else END

    @staticmethod
    async def _is_first(awaitable: Awaitable[Any], stopping: asyncio.Future[Any]) -> bool:
        task = asyncio.ensure_future(awaitable)
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            task.cancel()
        return not stopping.done()

    async def _wait_for_the_rest(self, stopping: asyncio.Future[Any]) -> None:
        if self._under_way and not stopping.done():  # the end of the jobs, which a stop may follow
            ended = asyncio.ensure_future(asyncio.wait(self._under_way))
            await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._grace)
        self._cancel_runs()
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _cancel_runs(self) -> None:
        for run in self._runs:
            run.cancel()  # stops it at the next operator

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._slots.release()
        if not task.cancelled() and (failure := task.exception()):
            self._failure = self._failure or failure
            self._stopping.set()

    def _start(self, job: Job) -> None:
        # Two tasks: `stop` cancels the first, which loads and runs; never the one that reports.
        run = asyncio.ensure_future(self._run(job))
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        task = asyncio.ensure_future(self._report(job, run))
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    async def _report(self, job: Job, run: asyncio.Task[Result]) -> None:
        await asyncio.wait([run])
        if run.cancelled():
            await self._on_result(Result(job.name, None, "cancelled"))
        elif failure := run.exception():
            await self._on_result(Result(job.name, None, str(failure)))
            raise failure
        else:
            await self._on_result(run.result())

    async def _run(self, job: Job) -> Result:
        try:
            x = await asyncio.to_thread(job.load)
            outputs = await self._engine.run_async([x], timeout=self._timeout)
        except DeadlineExceeded:
            return Result(job.name, None, f"took longer than {self._timeout:g} s")
        except (ClosedError, ForkError):
            raise  # the engine's fault: the jobs behind would fail for it as well
        except Exception as failure:
            # Whatever it is: a job that ended the worker would come again, and end the next one.
            return Result(job.name, None, str(failure) or repr(failure))
        return Result(job.name, outputs, None)


# --- The program ----------------------------------------------------------------------------------


def read_lines(loop: asyncio.AbstractEventLoop, jobs: asyncio.Queue[Job | None]) -> None:
    """Puts a job for each line of stdin into the queue; waits while that is full."""

    def put(job: Job | None) -> None:
        putting = jobs.put(job)
        try:
            asyncio.run_coroutine_threadsafe(putting, loop).result()
        finally:
            putting.close()  # the loop may have ended before it was begun

    rest = b""
    try:
        # Not sys.stdin, whose lock this thread would hold when the interpreter ends.
        while chunk := os.read(0, 65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, lines):
                put(_file_job(os.fsdecode(line)))
        if rest:
            put(_file_job(os.fsdecode(rest)))
        put(END)
    except (concurrent.futures.CancelledError, RuntimeError):
        pass  # the loop has ended, and nobody wants more


def _file_job(path: str) -> Job:
    return Job(path, lambda: read_npy(path))


class CannotReport(Exception):  # noqa: N818
    """A result could not be written; those behind it could not either."""


async def main_async(args: argparse.Namespace) -> int:
    """Works until stdin ends, or a signal comes. Returns the exit code."""
    num_failed = 0

    async def print_result(result: Result) -> None:
        nonlocal num_failed
        line: dict[str, Any] = {"job": result.name}
        if result.outputs is None:
            num_failed += 1
            line["error"] = result.error
        else:
            line["class"] = int(np.argmax(result.outputs[0]))
        try:
            print(json.dumps(line), flush=True)
        except OSError as error:
            raise CannotReport(f"the result of {result.name!r}: {error.strerror}") from error

    loop = asyncio.get_running_loop()
    model = args.model or bundled_model("squeezenet")
    with Engine(model, scheduler=args.scheduler) as engine:
        concurrency = args.concurrency or 2 * engine.num_streams
        jobs: asyncio.Queue[Job | None] = asyncio.Queue(concurrency)
        worker = Worker(engine, jobs, print_result, concurrency, args.timeout, args.grace)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, worker.stop)
        if args.demo:
            feeding = asyncio.ensure_future(_feed_demo(engine, jobs, args.demo))
        else:
            threading.Thread(target=read_lines, args=(loop, jobs), daemon=True).start()
            feeding = None
        await worker.work()
        if feeding is not None:
            feeding.cancel()
        print(engine.stats(), file=sys.stderr)
    return 1 if num_failed else 0


async def _feed_demo(engine: Engine, jobs: asyncio.Queue[Job | None], number: int) -> None:
    (x,) = engine.generate_random_inputs()
    for index in range(number):
        await jobs.put(Job(f"demo {index}", lambda: x))
    await jobs.put(END)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Runs a model on each .npy file named on stdin.")
    parser.add_argument("--model", help="path of an ONNX file with one input")
    parser.add_argument("--scheduler", default="elastic")
    parser.add_argument("--concurrency", type=int, help="jobs under way (default 2 a stream)")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for each run")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds to end in, when stopped")
    parser.add_argument("--demo", type=int, metavar="N", help="make N jobs up")
    args = parser.parse_args()
    if args.concurrency is not None and args.concurrency < 1:
        parser.error(f"--concurrency must be 1 or more, got {args.concurrency}")
    try:
        return asyncio.run(main_async(args))
    except (DeepschedError, OSError) as error:
        print(f"asyncio_worker: {error}", file=sys.stderr)
        return 2
    except CannotReport as error:
        print(f"asyncio_worker: cannot write {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes nowhere
        return 3


if __name__ == "__main__":
    sys.exit(main())
