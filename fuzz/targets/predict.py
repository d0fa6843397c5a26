"""Bodies of KServe's first protocol: they are answered, or refused as a client's error is; as many
predictions as instances.

The first byte chooses the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

from deepsched.server.predict import predict
from fuzz.json_values import mutated
from fuzz.served import MODELS, answered, inference
from fuzz.target import Target


def check(data: bytes) -> None:
    model = MODELS[(data[0] if data else 0) % len(MODELS)]
    body = memoryview(data)[1:]
    answer = answered(predict(inference(), model, "", body, None, None, 2048))
    if answer is None:
        return
    shown = json.loads(b"".join(answer.parts))
    request = json.loads(body.tobytes())
    if "predictions" in shown and model == "two":
        assert len(shown["predictions"]) == len(request["instances"])


def _mutate(data: bytes, random: Random) -> bytes:
    return data[:1] + mutated(data[1:], random)


def _seeds() -> Iterator[bytes]:
    for index, model in enumerate(MODELS):
        value = {"BOOL": True, "BYTES": "a"}.get(model, 1)
        bodies = [{"instances": [value, value]}, {"inputs": {"x": [value]}}, {"inputs": [value]}]
        if model == "two":
            bodies = [{"instances": [{"a": [1, 2, 3, 4], "b": 0}]}, {"inputs": {"b": [0]}}]
        for body in bodies:
            yield bytes([index]) + json.dumps(body).encode()


TARGET = Target(check, _seeds, _mutate, (b'"instances"', b'"inputs"', b"[[", b"]]", b"null"))
