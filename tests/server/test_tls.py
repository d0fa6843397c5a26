"""TLS and mutual TLS, of REST and gRPC."""

from __future__ import annotations

import contextlib
import socket
import ssl

import grpc
import httpx
import pytest

from deepsched.errors import OptionError
from deepsched.server.grpc_messages import message_class
from deepsched.server.settings import Settings
from deepsched.server.tls import http_options
from tests.support.serving import plus, save, serving

trustme = pytest.importorskip("trustme")

pytestmark = pytest.mark.server

LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def files(tmp_path, authority):
    """Paths of a certificate, its key, and their authority."""
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return [str(tmp_path / name) for name in ("cert.pem", "key.pem", "ca.pem")]


def trusting(authority, client=None):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client is not None:
        client.configure_cert(context)
    return context


def load_over_grpc(server, authority, client=None):
    roots = authority.cert_pem.bytes()
    if client is None:
        credentials = grpc.ssl_channel_credentials(roots)
    else:
        credentials = grpc.ssl_channel_credentials(
            roots, client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
        )
    request = message_class("RepositoryModelLoadRequest")(model_name="m").SerializeToString()
    with grpc.secure_channel(server.grpc, credentials) as channel:
        channel.unary_unary(LOAD)(request, timeout=30)


def test_both_ports_speak_tls(tmp_path, files, authority):
    cert, key, _ = files
    options = ("--tls-cert", cert, "--tls-key", key, "--lame-duck", 0)
    model = save(plus(1), tmp_path, "m.onnx")
    with serving(model, *options, ready=False, scheme="https") as server:
        with httpx.Client(verify=trusting(authority)) as client:
            server.wait_ready(client)
            assert client.get(f"{server.url}/v2/models/m").status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http"))
        load_over_grpc(server, authority)
        server.stop()
        assert server.wait() == 0


def test_a_handshake_that_does_not_come_ends_its_connection(tmp_path, files):
    cert, key, _ = files
    options = ("--tls-cert", cert, "--tls-key", key, "--header-timeout", 1)
    model = save(plus(1), tmp_path, "m.onnx")
    with serving(model, *options, ready=False, scheme="https") as server:
        for address in (server.url.removeprefix("https://"), server.grpc):
            host, port = address.split(":")
            with (
                socket.create_connection((host, int(port)), 20) as silent,
                contextlib.suppress(ConnectionError),
            ):
                assert silent.recv(1) == b""


def test_with_mutual_tls_only_clients_with_a_certificate_get_in(tmp_path, files, authority):
    cert, key, ca = files
    options = ("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca, "--lame-duck", 0)
    model = save(plus(1), tmp_path, "m.onnx")
    ours, other = authority.issue_cert("client"), trustme.CA().issue_cert("client")
    with serving(model, "--host", "0.0.0.0", *options, ready=False, scheme="https") as server:
        server.url = server.url.replace("0.0.0.0", "localhost")
        server.grpc = server.grpc.replace("0.0.0.0", "localhost")
        with httpx.Client(verify=trusting(authority, ours)) as client:
            server.wait_ready(client)
            answer = client.post(f"{server.url}/v2/repository/models/m/load")
            assert answer.status_code == 200  # the certificate is enough for control
        for stranger in (None, other):
            with (
                httpx.Client(verify=trusting(authority, stranger)) as client,
                pytest.raises(httpx.HTTPError),
            ):
                client.get(f"{server.url}/v2/models/m")
        load_over_grpc(server, authority, ours)
        with pytest.raises(grpc.RpcError):
            load_over_grpc(server, authority)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tls_cert": "cert"}, "tls_cert needs both"),
        ({"tls_client_ca": "ca"}, "tls_client_ca needs both"),
        ({"tls_cert": "cert", "tls_key": "missing"}, "cannot be used: .*No such file"),
        ({"tls_cert": "cert", "tls_key": "ca"}, "cannot be used"),
        ({"tls_cert": "cert", "tls_key": "other"}, "cannot be used: .*mismatch"),
        (
            {"tls_cert": "cert", "tls_key": "key", "tls_client_ca": "empty"},
            "tls_client_ca .*cannot",
        ),
    ],
)
def test_files_that_do_not_do_are_named(tmp_path, files, authority, given, message):
    authority.issue_cert("x").private_key_pem.write_to_path(tmp_path / "other.pem")
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(OptionError, match=message):
        http_options(
            Settings(**{name: str(tmp_path / f"{file}.pem") for name, file in given.items()})
        )
