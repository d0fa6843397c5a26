"""Listening sockets: a connection that the kernel has accepted is served, one that comes later is
refused."""

from __future__ import annotations

import errno
import socket
import threading

import pytest

from deepsched.errors import OptionError
from deepsched.server.listening import is_loopback, listen, refuse_new

pytestmark = pytest.mark.server


def test_connections_from_before_are_kept_and_new_ones_are_not_taken():
    with listen("127.0.0.1", 0) as listener:
        listener.setblocking(True)
        address = listener.getsockname()
        early = [socket.create_connection(address) for _ in range(5)]
        refuse_new(listener)
        late = socket.socket()
        late.settimeout(0.3)
        with late, pytest.raises(TimeoutError):
            late.connect(address)
        for number, client in enumerate(early):
            client.sendall(bytes([number]))
        for number in range(5):
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1) == bytes([number])
                connection.sendall(b"y")
        for client in early:
            with client:
                assert client.recv(1) == b"y"


def test_who_waits_meanwhile_is_refused_once_the_listener_is_closed():
    outcome = []
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        refuse_new(listener)

        def connect():
            with socket.socket() as client:
                client.settimeout(30)
                outcome.append(client.connect_ex(address))

        waiting = threading.Thread(target=connect)
        waiting.start()
    waiting.join(40)
    assert outcome == [errno.ECONNREFUSED]


def test_connections_ask_whether_the_other_machine_is_still_there():
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_a_port_that_is_free_again_can_be_taken_at_once():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass
    listen("127.0.0.1", port).close()


def test_two_servers_do_not_share_a_port():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OptionError, match=f"port {port} of 127.0.0.1 is in use; choose"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("0.0.0.0", False)],
)
def test_loopback_addresses_are_known(host, is_local):
    assert is_loopback(host) is is_local
