"""Who may load and unload models, name shared memory and read configurations."""

from __future__ import annotations

import grpc
import httpx
import pytest

from deepsched.errors import OptionError
from deepsched.server.access import TOKEN_VARIABLE, Access
from deepsched.server.errors import Forbidden, Unauthorized
from deepsched.server.grpc_messages import message_class
from deepsched.server.settings import Settings
from tests.support.serving import plus, save, serving

pytestmark = pytest.mark.server

TOKEN = "0123456789abcdef-token"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return str(path)


def check(settings, **headers):
    Access(settings).check({"host": "localhost:8000", **headers})


def test_programs_of_this_machine_need_no_token():
    for host in ("127.0.0.1", "localhost", "::1"):
        check(Settings(host=host))
    for name in ("127.0.0.1:8000", "[::1]:8000", "localhost"):
        check(Settings(), host=name)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_on_other_addresses_they_are_off_without_a_token(host, token_file):
    with pytest.raises(Forbidden, match=f"listens on {host} and has no token: start it with"):
        check(Settings(host=host))
    check(Settings(host=host, token_file=token_file), authorization=f"Bearer {TOKEN}")
    check(Settings(host=host, tls_client_ca="ca.pem"))  # whoever is connected has shown who it is


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer \u00fc"},
    ],
)
def test_with_a_token_each_request_must_bring_it(headers, token_file):
    with pytest.raises(Unauthorized, match="Authorization: Bearer"):
        check(Settings(token_file=token_file), **headers)
    with pytest.raises(Unauthorized):
        check(Settings(token_file=token_file, tls_client_ca="ca.pem"), **headers)


def test_the_token_may_be_in_the_environment(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    check(Settings(host="0.0.0.0"), authorization=f"bearer {TOKEN}")
    with pytest.raises(Unauthorized):
        check(Settings())


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9000"},
        {"host": "rebound.evil.example:8000"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost.evil.example"},
        {"host": "1.rebound.evil.example"},
    ],
)
def test_web_pages_of_others_may_not_use_them(headers, monkeypatch):
    access = Access(Settings())

    def resolve(*_, **__):  # the owner of a name decides what it resolves to
        return [(0, 0, 0, "", ("127.0.0.1", 0))]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    with pytest.raises(Forbidden, match="without a token"):
        access.check({"host": "localhost:8000", **headers})


def test_a_certificate_does_not_open_them_to_web_pages_of_others():
    settings = Settings(host="0.0.0.0", tls_client_ca="ca.pem")
    check(settings, host="models.example")
    check(settings, host="models.example", origin="https://models.example")
    with pytest.raises(Forbidden, match="not for web pages"):
        check(settings, host="models.example", origin="https://evil.example")


@pytest.mark.parametrize("name", ["forwarded", "x-forwarded-for", "via"])
def test_what_a_proxy_passes_on_needs_a_token(name, token_file):
    with pytest.raises(Forbidden, match=f"through a proxy, got the header {name}"):
        check(Settings(), **{name: "192.0.2.1"})
    headers = {name: "192.0.2.1", "authorization": f"Bearer {TOKEN}"}
    check(Settings(token_file=token_file), **headers)


def test_a_page_of_the_server_itself_may(token_file):
    check(Settings(), origin="http://localhost:8000")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("short", "has 5 characters; it needs 16"), ("", "has 0")],
)
def test_a_token_that_is_none_is_refused(tmp_path, content, message):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OptionError, match=f"token.*{path}.*{message}"):
        Access(Settings(token_file=str(path)))


def test_every_control_endpoint_asks_for_it(tmp_path, token_file):
    model = save(plus(1), tmp_path, "m.onnx")
    calls = [
        ("POST", "/v2/repository/models/m/load"),
        ("POST", "/v2/repository/models/m/unload"),
        ("GET", "/v2/models/m/config"),
        ("GET", "/v2/models/m/versions/1/config"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/systemsharedmemory/region/r/status"),
        ("POST", "/v2/systemsharedmemory/region/r/register"),
        ("POST", "/v2/systemsharedmemory/region/r/unregister"),
        ("POST", "/v2/systemsharedmemory/unregister"),
    ]
    rpcs = [
        ("RepositoryModelLoad", "model_name"),
        ("RepositoryModelUnload", "model_name"),
        ("ModelConfig", "name"),
        ("SystemSharedMemoryStatus", "name"),
        ("SystemSharedMemoryRegister", "name"),
        ("SystemSharedMemoryUnregister", "name"),
    ]
    with serving(model, "--token-file", token_file, "--lame-duck", 0) as server:
        for method, path in calls:
            answer = httpx.request(method, server.url + path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "token" in answer.json()["error"]
        with grpc.insecure_channel(server.grpc) as channel:
            for name, field in rpcs:
                request = message_class(f"{name}Request")(**{field: "m"}).SerializeToString()
                call = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
                with pytest.raises(grpc.RpcError) as refused:
                    call(request)
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED, name
            bearer = [("authorization", f"Bearer {TOKEN}")]
            request = message_class("ModelConfigRequest")(name="m").SerializeToString()
            channel.unary_unary("/inference.GRPCInferenceService/ModelConfig")(
                request, metadata=bearer
            )
        headers = {"authorization": f"Bearer {TOKEN}"}
        url = f"{server.url}/v2/repository/models/m/load"
        assert httpx.post(url, headers=headers).status_code == 200
        assert TOKEN not in server.output


def test_on_all_networks_they_are_off(tmp_path):
    model = save(plus(1), tmp_path, "m.onnx")
    with serving(model, "--host", "0.0.0.0", "--lame-duck", 0, ready=False) as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        server.wait_ready()
        answer = httpx.post(f"{server.url}/v2/repository/models/m/unload")
        assert answer.status_code == 403
        assert "--token-file" in answer.json()["error"]
        assert httpx.get(f"{server.url}/v2/models/m").status_code == 200
