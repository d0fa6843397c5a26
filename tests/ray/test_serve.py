"""Replicas of Ray Serve that are called by Ray."""

from __future__ import annotations

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray
from ray import serve

from deepsched import Engine
from deepsched.errors import DeadlineExceeded, InferenceError, OptionError, QueueFull
from deepsched.ray import application
from deepsched.ray.health import Health
from tests.support.ray_cluster import MARKS, leaseholders, row, wait_until

pytestmark = MARKS


def test_replicas_answer_right_on_cores_of_their_own(linear):
    path, weights = linear
    handle = serve.run(application(path, num_replicas=2), name="two", route_prefix="/two")
    answers = [handle.infer.remote([row(number)]) for number in range(200)]
    for number, answer in enumerate(answers):
        np.testing.assert_allclose(answer.result()["y"], row(number) @ weights, rtol=1e-5)
    assert len(leaseholders()) == 2
    serve.delete("two")
    wait_until(lambda: not leaseholders(), "the cores are given back")


def test_a_deadline_reaches_the_engine(linear):
    handle = serve.run(application(linear[0]), name="late", route_prefix="/late")
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        handle.infer.remote([row(1)], timeout=0).result()
    assert isinstance(caught.value.cause, DeadlineExceeded)
    serve.delete("late")


def test_a_replica_that_is_killed_under_load_loses_no_request_and_no_core(linear):
    """What was on its way to it is Ray's to repeat; the caller sees an error of Ray's at most."""
    path, weights = linear
    handle = serve.run(application(path, num_replicas=2), name="killed", route_prefix="/killed")
    victim = min(leaseholders())

    def ask(number):
        if number == 200:
            os.kill(victim, signal.SIGKILL)
        while True:
            try:
                return number, handle.infer.remote([row(number)]).result(timeout_s=60)["y"]
            except ray.exceptions.RayActorError:
                continue

    with ThreadPoolExecutor(8) as pool:
        answers = dict(pool.map(ask, range(1000)))
    for number, answer in answers.items():
        np.testing.assert_allclose(answer, row(number) @ weights, rtol=1e-5)
    assert len(answers) == 1000
    wait_until(lambda: len(leaseholders() - {victim}) == 2, "the new replica has its core")
    serve.delete("killed")
    wait_until(lambda: not leaseholders(), "the cores are given back")


def test_replicas_come_and_go_under_load(linear):
    path, weights = linear
    options = {"name": "scaled", "route_prefix": "/scaled"}
    handle = serve.run(application(path, num_replicas=1), **options)
    done = False

    def ask(caller):
        count = 0
        while not done:
            answer = handle.infer.remote([row(count)]).result(timeout_s=60)
            np.testing.assert_allclose(answer["y"], row(count) @ weights, rtol=1e-5)
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(ask, caller) for caller in range(4)]
        for num_replicas in (2, 1):
            serve.run(application(path, num_replicas=num_replicas), **options)
            wait_until(lambda n=num_replicas: len(leaseholders()) == n, "so many replicas")
        done = True
        assert all(count.result() for count in counts)
    serve.delete("scaled")


def test_num_cpus_that_is_not_the_lease_is_refused(linear):
    with pytest.raises(OptionError, match="num_cpus is 4"):
        application(linear[0], deployment={"ray_actor_options": {"num_cpus": 4}})


def test_health_is_what_has_answered_or_that_a_request_gets_through(linear):
    asked = []

    def asking(error=None):
        async def ask():
            asked.append(error)
            if error is not None:
                raise error

        return ask

    with Engine(linear[0]) as engine:
        health = Health("linear", engine.context)
        engine.run([row(1)])
        asyncio.run(health.check(asking(DeadlineExceeded("late"))))
        assert not asked  # it has answered since
        for error in (None, QueueFull("full"), InferenceError("the made-up input does not fit")):
            asyncio.run(health.check(asking(error)))
        with pytest.raises(DeadlineExceeded):
            asyncio.run(health.check(asking(DeadlineExceeded("late"))))
        assert len(asked) == 4
