"""Replicas of Ray Serve on ports of their own, which clients talk to without Ray."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from ray import serve

from deepsched.client import engine as client
from deepsched.errors import OptionError
from deepsched.ray import addresses, server_application
from tests.support.ray_cluster import MARKS, leaseholders, row, wait_until
from tests.support.serving import HTTP, save, slow_plus

pytestmark = MARKS


class Client:
    """Asks one address after another, and for the addresses again where one does not answer."""

    def __init__(self, handle, name="linear"):
        self._handle, self._path = handle, f"/v2/models/{name}/infer"
        self._addresses = addresses(handle)
        self._turns = itertools.count()
        self.num_failed = self.num_unanswered = 0
        """Tries that were repeated elsewhere; of these, ones that had been sent."""
        self.used = set()

    def infer(self, inputs):
        body = {
            "inputs": [
                {"name": name, "datatype": kind, "shape": it.shape, "data": it.ravel().tolist()}
                for name, kind, it in inputs
            ]
        }
        end = time.monotonic() + 60
        while time.monotonic() < end:
            known = self._addresses
            address = known[next(self._turns) % len(known)]
            try:
                answer = HTTP.post(address.http + self._path, json=body, timeout=60)
            except httpx.TransportError as error:
                self.num_failed += 1
                self.num_unanswered += not isinstance(error, httpx.ConnectError)
                self._addresses = addresses(self._handle) or known
                time.sleep(0.05)  # Ray may be about to start another
                continue
            assert answer.status_code == 200, answer.text
            self.used.add(address.http)
            (output,) = answer.json()["outputs"]
            return np.array(output["data"]).reshape(output["shape"])
        raise AssertionError("no answer in a minute")


def ask(client, number, weights):
    np.testing.assert_allclose(
        client.infer([("x", "FP32", row(number))]), row(number) @ weights, rtol=1e-5
    )
    return number


@contextlib.contextmanager
def running(name, *models, deployment=(), **options):
    """A handle of an application, which is gone at the end, and its leases with it."""
    built = {"graceful_shutdown_wait_loop_s": 0.1, **dict(deployment)}
    app = server_application(*models, lame_duck=0.5, deployment=built, **options)
    try:
        yield serve.run(app, name=name, route_prefix=f"/{name}")
    finally:
        serve.delete(name)
        wait_until(lambda: not leaseholders(), "the cores are given back")


def test_clients_talk_to_the_replicas_themselves(linear, cluster):
    path, weights = linear
    with running("ports", path, num_replicas=2) as handle:
        found = addresses(handle)
        assert len({it.http for it in found}) == len({it.replica for it in found}) == 2
        assert len(leaseholders()) == 2
        asking = Client(handle)
        for number in range(20):
            ask(asking, number, weights)
        assert asking.used == {it.http for it in found} and not asking.num_failed
        for it in found:
            client.open_server(it.grpc, "linear").close()  # it answers by gRPC too
        by_proxy = httpx.get(f"{cluster}/ports").json()
        assert sorted(it["http"] for it in by_proxy) == sorted(it.http for it in found)
    assert addresses(handle, timeout=1) == []
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{found[0].http}/v2/health/live")


def test_a_replica_killed_under_load_costs_a_repeated_request_and_is_replaced(linear):
    path, weights = linear
    with running("killed", path, num_replicas=2, host="0.0.0.0") as handle:
        before = {it.http for it in addresses(handle)}
        victim = min(leaseholders())
        asking = Client(handle)

        def each(number):
            if number == 200:
                os.kill(victim, signal.SIGKILL)
            return ask(asking, number, weights)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(each, range(1000))) == list(range(1000))
        assert asking.num_failed
        wait_until(lambda: len(leaseholders() - {victim}) == 2, "the new replica has its core")
        wait_until(lambda: len(addresses(handle)) == 2, "the new replica is listed")
        after = {it.http for it in addresses(handle)}
        assert len(after & before) == 1  # the dead one is not listed


def test_a_replica_that_goes_answers_what_it_has_accepted(tmp_path):
    """Ray sees no requests, so its autoscaler takes one of two replicas away, under load."""
    path = str(save(slow_plus(1), tmp_path, "slow.onnx"))
    x = np.zeros((64, 64), np.float32)
    done = threading.Event()

    def load(asking):
        count = 0
        while not done.is_set():
            answer = asking.infer([("steps", "INT64", np.array(20_000)), ("x", "FP32", x)])
            np.testing.assert_allclose(answer, np.ones((64, 64)))
            count += 1
        return count

    scaling = {"initial_replicas": 2, "min_replicas": 1, "max_replicas": 2, "downscale_delay_s": 2}
    with (
        running("goes", path, deployment={"autoscaling_config": scaling}) as handle,
        ThreadPoolExecutor(4) as pool,
    ):
        asking = Client(handle, "slow")
        counts = [pool.submit(load, asking) for _ in range(4)]
        wait_until(lambda: len(addresses(handle)) == 1, "one of them is listed no more")
        wait_until(lambda: len(leaseholders()) == 1, "it has given its core back")
        done.set()
        assert all(count.result() for count in counts)
        assert asking.num_unanswered == 0


def test_a_server_that_does_not_come_to_answer_is_replaced(linear):
    """The health check goes through the server's own event loop: a stopped process fails it."""
    path, weights = linear
    built = {"health_check_period_s": 0.5, "health_check_timeout_s": 2}
    with running("hung", path, deployment=built) as handle:
        (victim,) = leaseholders()
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: leaseholders() - {victim}, "another replica has its core")
        wait_until(lambda: addresses(handle, timeout=1), "another replica is listed")
        ask(Client(handle), 1, weights)


def test_mistakes_are_named_before_anything_is_deployed(linear):
    with pytest.raises(OptionError, match="no option 'lame_dukc'"):
        server_application(linear[0], lame_dukc=1)
    with pytest.raises(OptionError, match="Ray does not see"):
        server_application(linear[0], num_replicas="auto")
    with pytest.raises(OptionError, match="num_cpus is 4"):
        server_application(linear[0], deployment={"ray_actor_options": {"num_cpus": 4}})


def test_a_model_that_cannot_be_opened_is_named_by_the_deployment(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with (
        pytest.raises(RuntimeError, match="broken"),
        running(
            "broken",
            str(tmp_path / "broken.onnx"),
            deployment={"max_constructor_retry_count": 1},
        ),
    ):
        pass
