"""What goes over the wire, byte by byte, where clients hide it."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import zlib

import grpc
import ml_dtypes
import numpy as np
import pytest

from deepsched.errors import InputError
from deepsched.server.classification import classify
from deepsched.server.compression import decompressed
from deepsched.server.errors import RequestError, TooLarge
from deepsched.server.grpc_infer import parse
from deepsched.server.grpc_messages import SERVICE, message_class
from deepsched.server.tensors import TensorSpec, check_declared, from_raw
from tests.support import serving

pytestmark = pytest.mark.server


def _url(server, model="add_sub", action="infer"):
    return f"http://{server.http}/v2/models/{model}/{action}"


def _tensor(name="x", datatype="FP32", shape=(3,), data=(1, 2, 3), **parameters):
    tensor = {"name": name, "datatype": datatype, "shape": list(shape), "parameters": parameters}
    return {**tensor, "data": data} if data is not None else tensor


def _raw(text, *tensors, **headers):
    """The body and headers of a request with raw tensors."""
    head = json.dumps(text).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), **headers}
    return {"content": b"".join([head, *tensors]), "headers": headers}


def test_raw_tensors_go_both_ways(server):
    x = np.float32([1, -2, 3.5])
    tensor = _tensor(data=None, binary_data_size=x.nbytes)
    text = {"inputs": [tensor], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    answer = serving.HTTP.post(_url(server, "identity_FP32"), **_raw(text, x.tobytes()))
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    described = json.loads(answer.content[:length])["outputs"][0]
    assert described["parameters"] == {"binary_data_size": x.nbytes}
    assert "data" not in described
    assert answer.content[length:] == x.tobytes()


def test_the_same_json_is_answered_for_the_tensors_behind_it(server):
    text = {
        "id": "7",
        "inputs": [_tensor(data=None, binary_data_size=12)],
        "parameters": {"binary_data_output": True},
    }
    for x in ([0, 1, 0], [0, 0, 0], [2, 3, 0], [0, 0, 1], [1, 2, 3]):
        content = _raw(text, np.float32(x).tobytes())
        answer = serving.HTTP.post(_url(server, "nonzero"), **content)
        length = int(answer.headers["inference-header-content-length"])
        described = json.loads(answer.content[:length])
        (places,) = np.nonzero(x)
        assert described["id"] == "7"
        assert described["outputs"][0]["shape"] == [1, places.size]
        assert answer.content[length:] == places.astype(np.int64).tobytes()
    for sent, said in ((b"\0" * 8, "8 bytes are left"), (b"\0" * 16, "4 bytes behind the JSON")):
        answer = serving.HTTP.post(_url(server, "nonzero"), **_raw(text, sent))
        assert answer.status_code == 400
        assert said in answer.json()["error"]


@pytest.mark.parametrize("size", [5, 2000])
def test_json_takes_flat_and_nested_lists(server, size):
    values = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    url = _url(server, "mlp")
    shape = (2, size)
    for data in (values.tolist(), values.ravel().tolist()):
        answer = serving.HTTP.post(url, json={"inputs": [_tensor("x", "FP32", shape, data)]})
        # The model takes 64 features: that it tells so shows that the numbers were read.
        assert "[-1, 64]" in answer.json()["error"]
    wide = np.linspace(-1, 1, 64 * size, dtype=np.float32).reshape(size, 64)
    for data in (wide.tolist(), wide.ravel().tolist()):
        answer = serving.HTTP.post(url, json={"inputs": [_tensor("x", "FP32", wide.shape, data)]})
        assert answer.json()["outputs"][0]["shape"][0] == size


@pytest.mark.parametrize("count", [3, 3000])
@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT64", [-(2**63), 2**63 - 1, 0]),
        ("UINT64", [0, 2**64 - 1, 7]),
        ("INT8", [-128, 127, 0]),
        ("FP64", [1e308, -0.5, 3]),
        ("FP16", [0.5, -2, 65504]),
        ("BF16", [0.5, -2, 256]),
        ("FP8_E5M2", [0.5, -2, 1]),
        ("BOOL", [True, False, True]),
        ("BYTES", ["a", "ä", ""]),
    ],
)
def test_json_keeps_every_type(server, datatype, values, count):
    data = values * (count // 3)
    tensor = _tensor("x", datatype, (count,), data)
    answer = serving.HTTP.post(_url(server, f"identity_{datatype}"), json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == data


@pytest.mark.parametrize("count", [1, 3000])
@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT8", 128),
        ("INT64", 2**63),
        ("INT32", 1.5),
        ("INT32", "1"),
        ("INT32", True),
        ("UINT8", -1),
        ("FP32", "1"),
        ("FP32", None),
        ("FP32", [[1]]),
        ("BOOL", 1),
        ("BYTES", 1),
        ("BYTES", "a\0b"),
    ],
)
def test_json_that_does_not_fit_is_refused(server, datatype, value, count):
    tensor = _tensor("x", datatype, (count + 1,), [value] * count)
    if value == "a\0b":
        tensor["shape"] = [count]
    answer = serving.HTTP.post(_url(server, f"identity_{datatype}"), json={"inputs": [tensor]})
    assert answer.status_code == 400, answer.text
    assert "input 'x'" in answer.json()["error"]


_SHAPED = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": %b, "data": [1]}]}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"inputs": 1}',
        b'{"inputs": [{}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1], "data": []}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": ["1"], "data": [1]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": 1}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}',
        _SHAPED % b"[99999999999999999999]",
        _SHAPED % b"[4294967296, 4294967296]",
        b'{"inputs": [], "parameters": {"timeout": -1}}',
        b'{"inputs": []}',
        b"[" * 100_000,
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": ' + b"[" * 50_000,
        "ä".encode("latin-1"),
        _SHAPED % (b"[1" + b"0" * 4000 + b", 1" + b"0" * 4000 + b"]"),
        _SHAPED.replace(b"[1]", b"[1e999]") % b"[1]",
        _SHAPED.replace(b"[1]", b"[1" + b"0" * 1000 + b"]") % b"[1]",
        _SHAPED.replace(b"[1]", b"[1" + b"0" * 4000 + b"]") % b"[1]",
        _SHAPED.replace(b"[1]", b'["\xff"]') % b"[1]",
        _SHAPED.replace(b"[1]", b"[" * 900 + b"]" * 900) % b"[1]",
        b'{"inputs": [], "parameters": {"timeout": "%b"}}' % (b"1" * 5000),
        b'{"inputs": [], "parameters": {"priority": "%b"}}' % (b"1" * 5000),
        (_SHAPED % b"[1]")[:-1] + b', "outputs": [{"name": "y"}, {"name": "y"}]}',
    ],
)
def test_nonsense_is_a_400(server, content):
    answer = serving.HTTP.post(_url(server, "identity_FP32"), content=content)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("size", "sent", "said"),
    [
        (12, 8, "8 bytes are left"),
        (8, 8, "expected 12 bytes"),
        (12, 16, "4 bytes behind the JSON"),
        (-1, 12, "binary_data_size"),
        ("12", 12, "binary_data_size"),
    ],
)
def test_raw_tensors_of_other_sizes_are_refused(server, size, sent, said):
    text = {"inputs": [_tensor(data=None, binary_data_size=size)]}
    answer = serving.HTTP.post(_url(server, "identity_FP32"), **_raw(text, b"\0" * sent))
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999999999999999999999", "100000"])
def test_a_wrong_header_length_is_refused(server, length):
    headers = {"Inference-Header-Content-Length": length}
    answer = serving.HTTP.post(_url(server, "identity_FP32"), content=b"{}", headers=headers)
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length".lower() in answer.json()["error"].lower()


def test_numbers_that_json_has_not_are_to_be_asked_for_raw(server):
    x = np.float32([1, np.nan, np.inf])
    text = {"inputs": [_tensor(data=None, binary_data_size=x.nbytes)]}
    answer = serving.HTTP.post(_url(server, "identity_FP32"), **_raw(text, x.tobytes()))
    assert answer.status_code == 400
    assert "binary_data" in answer.json()["error"]


def test_answers_are_compressed_where_that_is_asked_for(server):
    data = [0] * 5000
    request = {"inputs": [_tensor("x", "FP32", (5000,), data)]}
    url = _url(server, "identity_FP32")
    content = gzip.compress(json.dumps(request).encode())
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    answer = serving.HTTP.post(url, content=content, headers=headers)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json()["outputs"][0]["data"] == data
    plain = serving.HTTP.post(url, json=request, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    for coding, body in (("gzip", b"no"), ("br", b"x"), ("gzip", content[:-4])):
        refused = serving.HTTP.post(url, content=body, headers={"Content-Encoding": coding})
        assert refused.status_code == 400


@pytest.mark.parametrize("size", [10, 2**20, 2**20 + 1, 16 * 2**20])
def test_others_are_served_while_a_small_body_becomes_a_large_one(size, monkeypatch):
    in_thread = []

    async def to_thread(function, *arguments):
        in_thread.append(plain := function(*arguments))
        return plain

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    body = memoryview(zlib.compress(bytes(size)))
    assert asyncio.run(decompressed(body, b"deflate", size)) == bytes(size)
    assert size - sum(map(len, in_thread)) <= 2**20
    with pytest.raises(TooLarge, match=f"more than {size - 1} bytes"):
        asyncio.run(decompressed(body, b"deflate", size - 1))
    with pytest.raises(RequestError, match="does not end where it should"):
        asyncio.run(decompressed(body[:-1], b"deflate", size))


def test_the_first_protocol_predicts(server):
    url = f"http://{server.http}/v1/models/add_sub:predict"
    instances = [{"INPUT0": [number] * 16, "INPUT1": [1] * 16} for number in range(3)]
    answer = serving.HTTP.post(url, json={"instances": instances})
    assert answer.json()["predictions"][2] == {"OUTPUT0": [3] * 16, "OUTPUT1": [1] * 16}
    columns = {"INPUT0": [[5] * 16], "INPUT1": [[1] * 16]}
    answer = serving.HTTP.post(url, json={"inputs": columns})
    assert answer.json()["outputs"] == {"OUTPUT0": [[6] * 16], "OUTPUT1": [[4] * 16]}
    single = serving.HTTP.post(
        f"http://{server.http}/v1/models/identity_FP32:predict", json={"instances": [0.5, 2]}
    )
    assert single.json() == {"predictions": [0.5, 2.0]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": []},
        {"instances": [1, 2]},
        {"instances": [{"INPUT0": [1] * 16}]},
        {"instances": [{"INPUT0": [1] * 16, "INPUT1": [1] * 16}, {}]},
        {"instances": [{"INPUT0": [[1], [2, 3]], "INPUT1": [1] * 16}]},
        {"inputs": {"INPUT0": [[1] * 15], "INPUT1": [[1] * 15]}},
        {"inputs": {"Z": 1}},
        {"instances": [{"INPUT0": ["a"] * 16, "INPUT1": [1] * 16}]},
        {"inputs": {"INPUT0": functools.reduce(lambda it, _: [it], range(100), 1), "INPUT1": [1]}},
    ],
)
def test_the_first_protocol_tells_what_is_wrong(server, body):
    answer = serving.HTTP.post(f"http://{server.http}/v1/models/add_sub:predict", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


def _call(server, request):
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        response = call(request if isinstance(request, bytes) else request.SerializeToString())
    return message_class("ModelInferResponse").FromString(response)


def _request(datatype, shape=(3,)):
    request = message_class("ModelInferRequest")(model_name=f"identity_{datatype}")
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    return request


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("FP32", "fp32_contents", [0.5, 1, 2]),
        ("FP64", "fp64_contents", [0.5, 1, 2]),
        ("INT8", "int_contents", [-1, 0, 1]),
        ("INT64", "int64_contents", [-1, 0, 1]),
        ("UINT16", "uint_contents", [1, 0, 1]),
        ("UINT64", "uint64_contents", [1, 0, 2**64 - 1]),
        ("BOOL", "bool_contents", [True, False, True]),
        ("BYTES", "bytes_contents", [b"a", b"", b"ccc"]),
    ],
)
def test_grpc_takes_typed_contents(server, datatype, field, values):
    request = _request(datatype)
    getattr(request.inputs[0].contents, field).extend(values)
    response = _call(server, request)
    assert response.outputs[0].datatype == datatype
    raw = response.raw_output_contents[0]
    if datatype == "BYTES":
        assert raw == b"\1\0\0\0a\0\0\0\0\3\0\0\0ccc"
    else:
        dtype = {"FP32": "f4", "FP64": "f8", "INT8": "i1", "INT64": "i8", "UINT16": "u2"}
        kind = {**dtype, "UINT64": "u8", "BOOL": "?"}[datatype]
        np.testing.assert_array_equal(np.frombuffer(raw, kind), values)


@pytest.mark.parametrize("size", [4, 100_000])
def test_grpc_takes_raw_contents_of_any_size(server, size):
    x = np.arange(size).astype(ml_dtypes.bfloat16)
    request = _request("BF16", (size,))
    request.raw_input_contents.append(x.tobytes())
    assert _call(server, request).raw_output_contents[0] == x.tobytes()
    # Protobuf lets fields come in any order, and skips those that it does not know.
    message = request.SerializeToString()
    tail = message.index(x.tobytes())
    head = len(message_class("ModelInferRequest").FromString(message).model_name) + 2
    unknown = b"\xfa\x01\x03abc\x78\x01"
    assert tail > head
    for each in (message[head:] + message[:head], unknown + message, message + unknown):
        assert _call(server, each).raw_output_contents[0] == x.tobytes()


def test_the_same_fields_are_answered_for_the_tensors_behind_them(server):
    for x in ([0, 1, 0], [0, 0, 0], [2, 3, 0], [0, 0, 1], [1, 2, 3]):
        request = message_class("ModelInferRequest")(model_name="nonzero", id="7")
        request.inputs.add(name="x", datatype="FP32", shape=[3])
        request.raw_input_contents.append(np.float32(x).tobytes())
        response = _call(server, request)
        (places,) = np.nonzero(x)
        assert response.id == "7"
        assert response.outputs[0].shape == [1, places.size]
        assert list(response.raw_output_contents) == [places.astype(np.int64).tobytes()]
    request.raw_input_contents[0] = b"\0" * 8
    with pytest.raises(grpc.RpcError, match="expected 12 bytes"):
        _call(server, request)


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x3a\x80" + b"\x80" * 20_000,
        b"\x0a\x05abc" + b"\0" * 20_000,
        b"\xff" * 20_000,
    ],
)
def test_grpc_refuses_what_is_no_message(server, message):
    with pytest.raises(grpc.RpcError) as caught:
        _call(server, message)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_length_without_an_end_is_not_read_to_its_end():
    with pytest.raises(RequestError, match="not a ModelInferRequest"):
        parse(b"\x3a" + b"\x80" * 20_000, 2**20)


def test_grpc_refuses_contents_that_do_not_fit(server):
    request = _request("INT8")
    request.inputs[0].contents.int_contents.extend([1, 2, 300])
    for wrong, said in ((request, "got 300"), (_request("FP32"), "expected 3 elements")):
        with pytest.raises(grpc.RpcError, match="input 'x'") as caught:
            _call(server, wrong)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert said in caught.value.details()
    request.raw_input_contents.append(b"123")
    with pytest.raises(grpc.RpcError, match="one way"):
        _call(server, request)
    double = _request("INT8")
    double.raw_input_contents.extend([b"123", b"456"])
    with pytest.raises(grpc.RpcError, match="2 elements"):
        _call(server, double)


@pytest.mark.parametrize("shape", [[0, 2**70], [0, 2**62, 2**62], [2**40, 2**40], [1] * 33])
def test_shapes_of_no_array_are_refused(shape):
    spec = TensorSpec("x", "FP32", np.dtype(np.float32), (), 0)
    with pytest.raises(InputError, match="no array has the shape|in 32 dimensions at most, got 33"):
        from_raw(spec, shape, check_declared(spec, "FP32", shape), memoryview(b""))


_MANY = 2**20 + 1


def test_what_is_taken_one_by_one_may_not_be_much(server):
    text = {"inputs": [_tensor("x", "BYTES", (_MANY,), None, binary_data_size=4 * _MANY)]}
    flags = b"true" + b",true" * _MANY
    lists = b",".join([b"[" * 20 + b"]" * 20] * 7000)
    tensor = b'{"inputs": [{"name": "x", "datatype": "BOOL", "shape": [%d], "data": [%b]}]}'
    for name, action, body in (
        ("BYTES", "v2/models/identity_BYTES/infer", _raw(text, bytes(4 * _MANY))),
        ("BOOL", "v2/models/identity_BOOL/infer", {"content": tensor % (_MANY, flags)}),
        ("BOOL", "v1/models/identity_BOOL:predict", {"content": b'{"inputs": [%b]}' % flags}),
        ("BOOL", "v1/models/identity_BOOL:predict", {"content": b'{"inputs": [%b]}' % lists}),
    ):
        answer = serving.HTTP.post(f"http://{server.http}/{action}", **body)
        assert answer.status_code == 400, name
        assert "expected at most 1" in answer.json()["error"]
    request = _request("BOOL", (_MANY,))
    request.inputs[0].contents.bool_contents.extend([True] * _MANY)
    with pytest.raises(grpc.RpcError, match="expected at most 1048576"):
        _call(server, request)


def test_contents_of_grpc_may_have_so_many_bytes():
    request = _request("BYTES", (1,))
    request.inputs[0].contents.bytes_contents.append(bytes(20_000))
    message = request.SerializeToString()
    assert parse(message, 21_000).message == request
    with pytest.raises(TooLarge, match="beside its raw_input_contents"):
        parse(message, 20_000)


def test_a_classification_may_not_be_long_and_may_be_of_nothing():
    spec = TensorSpec("y", "FP32", np.dtype(np.float32), (-1, -1), 0)
    assert classify(spec, np.zeros((0, 5), np.float32), 2, True).shape == (0, 2)
    for output, count in (
        (np.zeros((1, _MANY), np.float32), 1),
        (np.zeros((1001, 100), np.float32), 100),
    ):
        with pytest.raises(RequestError, match="at most 100000 of 1048576"):
            classify(spec, output, count, True)


def test_kubernetes_can_ask_over_grpc(server):
    with grpc.insecure_channel(server.grpc) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"
