"""How many replicas serve a rate within a p99, and the lines that start them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsched.advice import Advice, Replicas, Setting
from deepsched.advice.balancing import Failure, at_random, least_outstanding, of_two, simulate
from deepsched.advice.replicas import plan_replicas
from deepsched.cli import main

BUSY_MS = [10.0] * 90 + [12.0] * 10  # on one core; a tenth takes longer
SCALING_MS = {1: 9.0, 2: 5.0, 4: 3.0}


def cores(plan):
    return plan.num_replicas * plan.num_cores


@pytest.mark.field
@settings(max_examples=10)
@given(rate=st.floats(1, 2000), limit=st.floats(5, 60), most=st.sampled_from([1, 2, 4]))
def test_what_is_planned_serves_the_rate_within_the_limit(rate, limit, most):
    for plan in plan_replicas(SCALING_MS, BUSY_MS, most, rate, limit):
        assert plan.p99_ms <= limit and 0 < plan.load < 1
        assert plan.num_cores <= most and plan.num_cores % plan.num_streams == 0
        run_ms = SCALING_MS[plan.num_cores // plan.num_streams] / SCALING_MS[1] * 10.2
        busy = rate * run_ms / 1e3
        assert math.isclose(plan.load, busy / (plan.num_replicas * plan.num_streams))


def test_replicas_are_as_many_as_the_rate_and_the_balancer_take():
    ray, kubernetes = plan_replicas(SCALING_MS, BUSY_MS, 4, 1000, 30)
    assert (ray.balancer, kubernetes.balancer) == ("Ray Serve", "Kubernetes")
    assert 10.2 < cores(ray) <= cores(kubernetes)  # at random takes more
    assert ray.setting == Setting("elastic", None, 4)
    twice, _ = plan_replicas(SCALING_MS, BUSY_MS, 4, 2000, 30)
    assert cores(ray) < cores(twice) <= 2 * cores(ray)
    tighter, _ = plan_replicas(SCALING_MS, BUSY_MS, 4, 1000, 15)
    assert cores(ray) < cores(tighter)


def test_a_rate_that_one_machine_serves_takes_one_replica_on_some_of_its_cores():
    for plan in plan_replicas(SCALING_MS, BUSY_MS, 4, 20, 30):
        assert plan.num_replicas == 1 and plan.num_cores < 4


def test_a_limit_below_a_run_on_one_core_takes_wider_streams_until_none_is_fast_enough():
    for plan in plan_replicas(SCALING_MS, BUSY_MS, 4, 100, 8):
        assert plan.num_cores // plan.num_streams >= 2
        assert plan.setting.scheduler in ("single_stream", "multi_stream")
    assert plan_replicas(SCALING_MS, BUSY_MS, 4, 100, 3.9) == ()


def test_a_balancer_that_sees_more_has_shorter_queues():
    found = [
        simulate(10, 4, 36.0, lambda rng: 1.0, balancer, 20_000).p99
        for balancer in (at_random, of_two, least_outstanding)
    ]
    assert found == sorted(found, reverse=True) and found[0] > 2 * found[2]


def test_a_node_that_dies_unnoticed_costs_the_time_until_it_is_noticed():
    dies = [Failure(100.0, after) for after in (1.0, 100.0)]
    soon, late = (
        simulate(4, 2, 4.0, lambda rng: 1.0, of_two, 2000, failure, (100.0, 300.0))
        for failure in dies
    )
    assert soon.retried < late.retried and soon.p99 < 10 < late.p99


def test_the_line_for_ray_is_a_call_of_its_api():
    given = []
    advice = Advice(
        Setting("elastic", None, None), "auto", None, "", "", (), (), {}, "", 0, rewrites="exact"
    )
    plan = Replicas("Ray Serve", 3, 4, 2, 20.0, 0.7)
    line = advice.ray_line('a "b".onnx', plan)

    class Serve:
        run = staticmethod(given.append)

    eval(line, {"serve": Serve, "application": lambda *args, **kwargs: (args, kwargs)})
    assert given == [
        (
            ('a "b".onnx',),
            {
                "scheduler": "multi_stream",
                "num_streams": 2,
                "num_cores": 4,
                "num_replicas": 3,
                "rewrites": "exact",
            },
        )
    ]


@pytest.mark.field
def test_the_command_prints_replicas_for_a_rate_with_a_p99_limit(mlp, quiet, capsys):
    asked = ["advise", mlp, "--rate", "1000", "--p99-limit", "50", "--seconds", "1", "-q"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert f'serve.run(application("{mlp}"' in out and "replicas: 1\n" in out
    assert main([*asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [it["num_replicas"] for it in answer["replicas"]] == [1, 1]
    assert main([*asked[:5], "0.0001", *asked[6:]]) == 0
    assert "No number of replicas" in capsys.readouterr().out
