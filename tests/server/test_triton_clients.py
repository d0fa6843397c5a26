"""tritonclient, its four forms, against a server of ours."""

from __future__ import annotations

import asyncio
import queue
from multiprocessing import shared_memory

import ml_dtypes
import numpy as np
import pytest

from deepsched.server.errors import RequestError
from deepsched.server.shared_memory import Regions
from tests.server.conftest import TYPES

grpcclient = pytest.importorskip("tritonclient.grpc")
httpclient = pytest.importorskip("tritonclient.http")
grpcaio = pytest.importorskip("tritonclient.grpc.aio")
httpaio = pytest.importorskip("tritonclient.http.aio")
shm = pytest.importorskip("tritonclient.utils.shared_memory")
utils = pytest.importorskip("tritonclient.utils")

pytestmark = pytest.mark.server


@pytest.fixture(params=["http", "grpc"])
def triton(request, server):
    """The module of a client, and the client."""
    module = {"http": httpclient, "grpc": grpcclient}[request.param]
    address = {"http": server.http, "grpc": server.grpc}[request.param]
    client = module.InferenceServerClient(address)
    yield module, client
    client.close()


def _add_sub_inputs(module, num_rows=1, **options):
    data = [np.arange(16 * num_rows, dtype=np.int32).reshape(num_rows, 16), None]
    data[1] = np.full((num_rows, 16), 5, np.int32)
    inputs = [module.InferInput(f"INPUT{i}", data[i].shape, "INT32") for i in (0, 1)]
    for i in (0, 1):
        inputs[i].set_data_from_numpy(data[i], **options)
    return data, inputs


def _check(result, data):
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), data[0] + data[1])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), data[0] - data[1])


def test_it_says_what_it_is(triton):
    module, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add_sub")
    assert not client.is_model_ready("nope")
    options = {"as_json": True} if module is grpcclient else {}
    assert "binary_tensor_data" in client.get_server_metadata(**options)["extensions"]
    metadata = client.get_model_metadata("add_sub", **options)
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["INPUT0", "INPUT1"]
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 16]
    config = client.get_model_config("add_sub", **options)
    config = config.get("config", config)
    assert config["max_batch_size"] > 1
    assert [int(size) for size in config["input"][0]["dims"]] == [16]
    statistics = client.get_inference_statistics("add_sub", **options)
    assert statistics["model_stats"][0]["name"] == "add_sub"
    index = client.get_model_repository_index(**options)
    entries = index["models"] if module is grpcclient else index
    assert {entry["name"]: entry["state"] for entry in entries}["add_sub"] == "READY"


def test_it_adds_and_subtracts(triton):
    module, client = triton
    data, inputs = _add_sub_inputs(module, 3)
    _check(client.infer("add_sub", inputs), data)
    outputs = [module.InferRequestedOutput("OUTPUT1")]
    result = client.infer("add_sub", inputs, "1", outputs=outputs, request_id="r-7")
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), data[0] - data[1])
    assert result.as_numpy("OUTPUT0") is None
    response = result.get_response()
    assert (response["id"] if module is httpclient else response.id) == "r-7"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_http_takes_and_gives_both_forms(server, binary_in, binary_out, compression):
    with httpclient.InferenceServerClient(server.http) as client:
        data, inputs = _add_sub_inputs(httpclient, 40, binary_data=binary_in)
        outputs = [
            httpclient.InferRequestedOutput(f"OUTPUT{i}", binary_data=binary_out) for i in (0, 1)
        ]
        result = client.infer(
            "add_sub",
            inputs,
            outputs=outputs,
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
        _check(result, data)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
@pytest.mark.parametrize("count", [1, 5000])
def test_grpc_takes_compressed_messages(server, compression, count):
    with grpcclient.InferenceServerClient(server.grpc) as client:
        data, inputs = _add_sub_inputs(grpcclient, count)
        _check(client.infer("add_sub", inputs, compression_algorithm=compression), data)


@pytest.mark.parametrize("datatype", sorted(set(TYPES) - {"FP8_E4M3FN", "FP8_E5M2"}))
def test_each_type_comes_back_as_it_went(triton, datatype):
    module, client = triton
    dtype = utils.triton_to_np_dtype(datatype)
    values = np.array([0, 1, 1, 0]).astype(dtype)
    if datatype == "BYTES":
        values = np.array([b"a", "ä".encode(), b"", b"longer"], object)
    given = module.InferInput("x", [4], datatype)
    given.set_data_from_numpy(values)
    result = client.infer(f"identity_{datatype}", [given]).as_numpy("y")
    np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize("datatype", ["FP8_E4M3FN", "FP8_E5M2"])
def test_types_that_clients_have_no_word_for_go_raw(server, datatype):
    with grpcclient.InferenceServerClient(server.grpc) as client:
        dtype = getattr(ml_dtypes, f"float8_{datatype[4:].lower()}")
        values = np.array([0.5, -2, 1], dtype)
        given = grpcclient.InferInput("x", [3], datatype)
        given._raw_content = values.tobytes()
        result = client.infer(f"identity_{datatype}", [given])
        raw = result.get_response().raw_output_contents[0]
        np.testing.assert_array_equal(np.frombuffer(raw, dtype), values)


def test_images_pass(triton):
    module, client = triton
    image = np.random.default_rng(0).random((2, 3, 224, 224), np.float32)
    given = module.InferInput("x", image.shape, "FP32")
    given.set_data_from_numpy(image)
    np.testing.assert_array_equal(client.infer("image", [given]).as_numpy("y"), image)


def test_classes_come_with_value_and_index(triton):
    module, client = triton
    given = module.InferInput("x", [2, 3, 224, 224], "FP32")
    image = np.zeros((2, 3, 224, 224), np.float32)
    image[0, 1, 0, 0], image[1, 0, 0, 3] = 2.5, 7
    given.set_data_from_numpy(image)
    output = module.InferRequestedOutput("y", class_count=2)
    classes = client.infer("image", [given], outputs=[output]).as_numpy("y")
    assert classes.shape == (2, 2)
    assert classes[0, 0] == f"2.500000:{224 * 224}".encode()
    assert classes[1, 0] == b"7.000000:3"


def test_shared_memory_is_read_and_written(triton):
    module, client = triton
    client.unregister_system_shared_memory()
    data = [np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)]
    size = data[0].nbytes
    source = shm.create_shared_memory_region("source", "/deepsched_test_in", 2 * size)
    target = shm.create_shared_memory_region("target", "/deepsched_test_out", 2 * size)
    try:
        shm.set_shared_memory_region(source, data)
        client.register_system_shared_memory("source", "/deepsched_test_in", 2 * size)
        client.register_system_shared_memory("target", "/deepsched_test_out", 2 * size)
        inputs, outputs = [], []
        for i in (0, 1):
            inputs.append(module.InferInput(f"INPUT{i}", [1, 16], "INT32"))
            inputs[i].set_shared_memory("source", size, i * size)
            outputs.append(module.InferRequestedOutput(f"OUTPUT{i}"))
            outputs[i].set_shared_memory("target", size, i * size)
        result = client.infer("add_sub", inputs, outputs=outputs)
        output = result.get_output("OUTPUT1")
        assert output is not None
        for i, expected in enumerate((data[0] + data[1], data[0] - data[1])):
            got = shm.get_contents_as_numpy(target, np.int32, [1, 16], i * size)
            np.testing.assert_array_equal(got, expected)
        status = client.get_system_shared_memory_status()
        regions = status if module is httpclient else status.regions
        assert len(regions) == 2
        # One where it was asked for, the other in the answer.
        mixed = client.infer(
            "add_sub", inputs, outputs=[outputs[0], module.InferRequestedOutput("OUTPUT1")]
        )
        np.testing.assert_array_equal(mixed.as_numpy("OUTPUT1"), data[0] - data[1])
        client.unregister_system_shared_memory("source")
        with pytest.raises(utils.InferenceServerException, match="source"):
            client.infer("add_sub", inputs, outputs=outputs)
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(source)
        shm.destroy_shared_memory_region(target)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("/../etc/passwd", "key"),
        ("..", "key"),
        ("/sem.x", "key"),
        ("", "key"),
        ("/no_such_region", "No such file"),
    ],
)
def test_keys_are_names_of_shared_memory_only(triton, key, said):
    _, client = triton
    with pytest.raises(utils.InferenceServerException, match=said):
        client.register_system_shared_memory("r", key, 64)


def test_a_number_of_shared_memory_that_is_too_long_is_refused():
    memory = shared_memory.SharedMemory(create=True, size=64)
    try:
        regions = Regions()
        regions.register("r", memory.name, 0, 64)
        asked = {"shared_memory_region": "r", "shared_memory_byte_size": "1" * 5000}
        with pytest.raises(RequestError, match="shared_memory_byte_size to be 0 or more"):
            regions.view("input 'x'", asked)
    finally:
        memory.close()
        memory.unlink()


def test_a_stream_answers_in_order_and_tells_errors(server):
    answers = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for number in range(20):
            data, inputs = _add_sub_inputs(grpcclient, number % 3 + 1)
            name = "nope" if number == 7 else "add_sub"
            client.async_stream_infer(name, inputs, request_id=str(number))
        for number in range(20):
            result, error = answers.get(timeout=20)
            if number == 7:
                assert "nope" in str(error)
            else:
                assert error is None
                assert result.get_response().id == str(number)
                assert result.as_numpy("OUTPUT0").shape == (number % 3 + 1, 16)
        client.stop_stream()


@pytest.mark.parametrize("module", [httpaio, grpcaio], ids=["http", "grpc"])
def test_asyncio_clients_are_answered_side_by_side(server, module):
    async def main():
        address = server.http if module is httpaio else server.grpc
        async with module.InferenceServerClient(address) as client:
            data, inputs = _add_sub_inputs(module, 2)
            for result in await asyncio.gather(
                *(client.infer("add_sub", inputs) for _ in range(20))
            ):
                _check(result, data)

    asyncio.run(main())


WRONG = {
    "unknown model": ("nope", {}, "nope"),
    "unknown version": ("add_sub", {"version": "9"}, "'9'"),
    "unknown input": ("add_sub", {"names": ("INPUT0", "Z")}, "'Z'"),
    "missing input": ("add_sub", {"names": ("INPUT0",)}, "INPUT1"),
    "type": ("add_sub", {"datatype": "FP32"}, "expected INT32, got 'FP32'"),
    "shape": ("add_sub", {"shape": (1, 15)}, r"INPUT0.*expected shape \[-1, 16\], got \[1, 15\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_told_what_was_expected(triton, case):
    module, client = triton
    model, options, said = WRONG[case]
    shape = options.get("shape", (1, 16))
    datatype = options.get("datatype", "INT32")
    inputs = []
    for name in options.get("names", ("INPUT0", "INPUT1")):
        given = module.InferInput(name, shape, datatype)
        given.set_data_from_numpy(np.zeros(shape, utils.triton_to_np_dtype(datatype)))
        inputs.append(given)
    with pytest.raises(utils.InferenceServerException, match=said) as caught:
        client.infer(model, inputs, options.get("version", ""))
    status = str(caught.value.status())
    if "model" in case or "version" in case:
        assert "404" in status or "NOT_FOUND" in status
    else:
        assert "400" in status or "INVALID_ARGUMENT" in status


def test_what_a_kernel_refuses_is_no_error_of_the_server(triton):
    module, client = triton
    x = module.InferInput("x", [3], "FP32")
    x.set_data_from_numpy(np.zeros(3, np.float32))
    index = module.InferInput("index", [1], "INT64")
    index.set_data_from_numpy(np.array([9], np.int64))
    with pytest.raises(utils.InferenceServerException, match="out of data bounds") as caught:
        client.infer("gather", [x, index])
    assert "400" in str(caught.value.status()) or "INVALID" in str(caught.value.status())
