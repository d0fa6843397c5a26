"""Threads that start together, and whose failures are the test's."""

from __future__ import annotations

import os
import threading


def in_threads(num_threads, work):
    """Runs work(i) in threads that start together; raises the first failure."""
    barrier = threading.Barrier(num_threads)
    failures = []

    def body(i):
        try:
            barrier.wait()
            work(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def produce_and_consume(push, pop, num_threads, per_producer):
    """Pushes from num_threads threads and pops in as many others, until all is popped.

    The items are producer << 32 | n, n from 1 to per_producer. `push` returns whether there was
    room, `pop` returns None where there is nothing. Returns what each consumer popped, in order.
    """
    popped = [[] for _ in range(num_threads)]
    left = threading.Semaphore(num_threads * per_producer)

    def produce(producer):
        for n in range(1, per_producer + 1):
            while not push(producer << 32 | n):
                os.sched_yield()

    def consume(mine):
        while left.acquire(blocking=False):
            while (item := pop()) is None:
                os.sched_yield()
            mine.append(item)

    in_threads(
        2 * num_threads,
        lambda i: produce(i) if i < num_threads else consume(popped[i - num_threads]),
    )
    return popped
