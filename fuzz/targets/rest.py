"""REST's inferences (JSON, and raw tensors behind it): a request is answered, or refused as one of
a client's errors; the answer of y = x, sent again, is answered the same, as JSON and raw.

The first byte chooses the model, the second how many bytes at the end are raw; 0: none are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

from deepsched.server import rest_infer
from fuzz.json_values import mutated
from fuzz.served import MODELS, TYPES, answered, inference
from fuzz.target import Target

_MAX_JSON = 2048


def check(data: bytes) -> None:
    model, body, json_bytes = _split(data)
    answer = _infer(model, body, json_bytes)
    if answer is None or model not in TYPES:
        return
    head, raw = _parts(answer)
    for output in head["outputs"]:
        if output["name"] != "y" or output["datatype"] != model:
            continue  # of a classification
        size = output.get("parameters", {}).get("binary_data_size", 0)
        given = {**output, "name": "x"}
        wanted = [{"name": "y", "parameters": {"binary_data": bool(size)}}]
        text = json.dumps({"inputs": [given], "outputs": wanted}).encode()
        again = _infer(model, text + raw[:size], len(text))
        if again is not None:  # longer than JSON may be here
            assert _parts(again)[0]["outputs"] == [output], (output, again)
            assert _parts(again)[1] == raw[:size]
        raw = raw[size:]


def _split(data: bytes) -> tuple[str, bytes, int | None]:
    model = MODELS[(data[0] if data else 0) % len(MODELS)]
    body = data[2:]
    num_raw = data[1] if len(data) > 1 else 0
    return model, body, max(0, len(body) - num_raw) if num_raw else None


def _infer(model: str, body: bytes, json_bytes: int | None) -> Any:
    return answered(
        rest_infer.infer(inference(), model, "", memoryview(body), json_bytes, None, _MAX_JSON)
    )


def _parts(answer: Any) -> tuple[Any, bytes]:
    whole = b"".join(answer.parts)
    size = len(whole) if answer.json_bytes is None else answer.json_bytes
    return json.loads(whole[:size]), whole[size:]


def _mutate(data: bytes, random: Random) -> bytes:
    _, body, json_bytes = _split(data)
    size = len(body) if json_bytes is None else json_bytes
    model = data[:1] if random.random() < 0.8 else random.randbytes(1)
    return model + data[1:2] + mutated(body[:size], random) + body[size:]


def _seeds() -> Iterator[bytes]:
    values: dict[str, list[Any]] = {"BOOL": [True, False], "BYTES": ["a", "ä"]}
    for index, model in enumerate(MODELS):
        tensor = {"name": "x", "datatype": model, "shape": [2], "data": values.get(model, [1, 2])}
        tensors = [tensor]
        if model == "two":
            tensors = [
                {"name": "a", "datatype": "FP32", "shape": [1, 4], "data": [[1, 2, 3, 4]]},
                {"name": "b", "datatype": "INT64", "shape": [2], "data": [0, 0]},
            ]
        yield bytes([index, 0]) + json.dumps({"inputs": tensors, "id": "7"}).encode()
        raw = {"name": "x", "datatype": model, "shape": [1], "parameters": {"binary_data_size": 8}}
        wanted = {"name": "y", "parameters": {"classification": 2, "binary_data": True}}
        text = {"inputs": [raw], "outputs": [wanted], "parameters": {"binary_data_output": True}}
        yield bytes([index, 8]) + json.dumps(text).encode() + bytes(8)
    long = {"name": "x", "datatype": "INT8", "shape": [700], "data": [1] * 700}
    yield bytes([MODELS.index("INT8"), 0]) + json.dumps({"inputs": [long]}).encode()
    shared = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": shared}
    limits = {"timeout": 10**6, "priority": 1}
    yield b"\0\0" + json.dumps({"inputs": [tensor], "parameters": limits}).encode()


_WORDS = (
    *(b'"inputs"', b'"outputs"', b'"name"', b'"datatype"', b'"shape"', b'"data"', b'"parameters"'),
    *(b'"binary_data_size"', b'"binary_data"', b'"classification"', b'"timeout"', b'"priority"'),
    *(b"null", b"true", b"1e308", b"-1", b"18446744073709551616", b"[[", b"]]", b'"\\ud800"'),
)

TARGET = Target(check, _seeds, _mutate, _WORDS)
