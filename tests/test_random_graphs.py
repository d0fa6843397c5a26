"""Random graphs give plain onnxruntime's bits, whatever way requests come in.

These are few, and always the same. `make graphs` tries others, and parts of onnx's own suite.
"""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, reject, settings

from tests.support.graphs.checking import Unfit, open_contexts, try_model
from tests.support.graphs.growing import models
from tests.support.graphs.settings import settings_of_engines


def test_random_graphs_give_the_bits_of_plain_onnxruntime_by_every_way_in():
    @settings(
        max_examples=25,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # a smaller example would take minutes
    )
    @given(models(), settings_of_engines)
    def try_one(model, setting):
        try:
            try_model(model, setting, contexts)
        except Unfit:
            reject()

    with open_contexts() as contexts:
        try_one()
