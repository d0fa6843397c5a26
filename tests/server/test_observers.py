"""The access log and OpenTelemetry's spans of requests, each off unless asked for."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from deepsched.errors import OptionError
from deepsched.server.access_log import AccessLog
from deepsched.server.inference import Ended
from tests.support import serving
from tests.support.processes import run_python

pytestmark = pytest.mark.server

ENDED = Ended("mlp", "3", "id-1", "rest", "done", 10**9, 10**9 + 2_500_000, "10.0.0.7", "")


def written(ended, kind):
    file = io.StringIO()
    log = AccessLog(kind, file)
    for each in ended:
        log(each)
    log.close()
    return file.getvalue().splitlines()


def test_a_line_of_the_access_log_says_who_asked_what_and_how_it_ended():
    (line,) = written([ENDED], "json")
    found = json.loads(line)
    del found["time"]
    assert found == {
        "protocol": "rest",
        "peer": "10.0.0.7",
        "model": "mlp",
        "version": "3",
        "id": "id-1",
        "outcome": "done",
        "ms": 2.5,
    }
    (line,) = written([ENDED], "text")
    assert line.endswith("Z rest 10.0.0.7 mlp/3 done 2.5 ms id-1")


def test_a_client_cannot_write_lines_of_its_own():
    forged = ENDED._replace(model="x\n2026-01-01 rest evil", request_id="\x1b[2J")
    assert len(written([forged, forged], "text")) == len(written([forged, forged], "json")) == 2
    assert "\x1b" not in written([forged], "text")[0]


def test_a_reader_who_stalls_holds_up_no_request(monkeypatch, capsys):
    monkeypatch.setattr("deepsched.server.access_log._CAPACITY", 4)
    stalled, go_on = threading.Event(), threading.Event()

    class Pipe(io.StringIO):
        def write(self, text):
            stalled.set()
            go_on.wait()
            return super().write(text)

    pipe = Pipe()
    log = AccessLog("json", pipe)
    log(ENDED)
    stalled.wait()
    for _ in range(100):  # returns, though nobody reads
        log(ENDED)
    go_on.set()
    log.close()
    assert len(pipe.getvalue().splitlines()) == 5
    assert "the access log lacks 96 lines" in capsys.readouterr().err


def test_unknown_formats_are_refused():
    with pytest.raises(OptionError, match="access_log must be one of json, text, got 'xml'"):
        AccessLog("xml")


def test_requests_of_both_protocols_are_logged(tmp_path):
    grpc = pytest.importorskip("grpc")
    serving.save(serving.plus(1), tmp_path, "plus.onnx")
    with serving.serving(
        tmp_path / "plus.onnx", "--access-log", "json", "--lame-duck", "0"
    ) as server:
        infer = f"{server.url}/v2/models/plus/infer"
        httpx.post(infer, json={**serving.body([1, 2, 3, 4]), "id": "first"}).raise_for_status()
        assert httpx.post(infer, json={"inputs": []}).status_code == 400
        with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\x0a\x04nope")
        server.stop()
        server.wait()
    logged = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert [(it["protocol"], it["model"], it["outcome"], it["id"]) for it in logged] == [
        ("rest", "plus", "done", "first"),
        ("rest", "plus", "invalid", ""),
        ("grpc", "nope", "not_found", ""),
    ]


# --- Spans ------------------------------------------------------------------------------------

PARENT = "0af7651916cd43dd8448eb211c80319c"


@contextlib.contextmanager
def collector():
    """An address for OTLP over HTTP, and the requests' bodies that came."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *ignored):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_span_continues_its_client_s_trace_and_tells_queue_and_run(tmp_path):
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    serving.save(serving.plus(1), tmp_path, "plus.onnx")
    with collector() as (endpoint, bodies):
        with serving.serving(
            *(tmp_path / "plus.onnx", "--trace-share", "0", "--lame-duck", "0"),
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"},
        ) as server:
            for flags in ("01", "00", None):  # recorded by its client, not recorded, and no trace
                headers = {"traceparent": f"00-{PARENT}-b7ad6b7169203331-{flags}"} if flags else {}
                httpx.post(
                    f"{server.url}/v2/models/plus/infer",
                    json=serving.body([1, 2, 3, 4]),
                    headers=headers,
                ).raise_for_status()
            server.stop()
            server.wait()
        requests = map(trace_service.ExportTraceServiceRequest.FromString, bodies)
        spans = [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
    (span,) = spans
    assert span.trace_id.hex() == PARENT
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    assert span.name == "infer plus"
    assert [event.name for event in span.events] == ["queued", "run began", "run ended"]
    times = [
        span.start_time_unix_nano,
        *(event.time_unix_nano for event in span.events),
        span.end_time_unix_nano,
    ]
    assert times == sorted(times)


def test_without_it_nothing_of_opentelemetry_is_imported():
    run_python(
        """
        import sys
        import deepsched.server.main
        assert not [name for name in sys.modules if name.startswith("opentelemetry")]
        """
    )


def test_what_is_missing_is_named(monkeypatch):
    from deepsched.server.tracing import SpanRecorder

    with pytest.raises(OptionError, match="trace_share must be from 0 to 1, got 2"):
        SpanRecorder(2)
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry", None)
    with pytest.raises(OptionError, match=r"pip install 'deepsched\[otel\]'"):
        SpanRecorder(0.5)
