"""GrpcServer: grpc.aio, closed such that every request is answered or refused as UNAVAILABLE."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress

import grpc

from deepsched.errors import OptionError
from deepsched.server import grpc_service
from deepsched.server.listening import refuse_new, why_not
from deepsched.server.server import Server
from deepsched.server.tls import grpc_credentials

_POLL_S = 0.01


class GrpcServer:
    """gRPC of a server.

    grpc's own stop ends requests that it has read and not handed over yet as CANCELLED, as if their
    clients had asked for that: about one a client, under load. So its listener and its connections
    are closed below it, once all that was accepted is answered; to clients, what they have sent
    since is UNAVAILABLE, and may be sent elsewhere.

    Raises:
        OptionError: nothing can listen at its address.
    """

    def __init__(self, server: Server) -> None:
        settings = server.settings
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                # grpc compares that with what came, and then decompresses any amount.
                ("grpc.per_message_decompression", 0),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_allowed_incoming_connections", settings.max_connections),
                ("grpc.max_connection_idle_ms", int(settings.keep_alive * 1000)),
                # Of TLS, and until the first frame; clients that are gone without a word.
                ("grpc.server_handshake_timeout_ms", int(settings.header_timeout * 1000)),
                ("grpc.keepalive_time_ms", int(settings.keep_alive * 1000)),
                ("grpc.so_reuseport", 0),  # or two servers would share a port in silence
            ],
            maximum_concurrent_rpcs=settings.max_grpc_requests,
        )
        self._service = grpc_service.Service(server)
        self._server.add_generic_rpc_handlers(grpc_service.handlers(self._service))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        credentials = grpc_credentials(settings)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            # grpc says what it tried, not why it failed. In use is the usual case.
            error = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            raise OptionError(
                f"grpc_port: {why_not(settings.host, settings.grpc_port, error)}"
            ) from None
        self.address: tuple[str, int] = settings.host, port

    async def start(self) -> None:
        """Takes requests from here on."""
        await self._server.start()

    async def close(self, deadline: float) -> None:
        """Takes no new connections and requests, and waits until those accepted are answered.

        Args:
            deadline: of the event loop's clock; then what is left is cut off.
        """
        loop = asyncio.get_running_loop()
        for listener in _own_sockets(self.address[1], listening=True):
            refuse_new(listener)
            listener.close()
        await asyncio.sleep(_POLL_S)  # grpc accepts what the kernel has
        connections = list(_own_sockets(self.address[1], listening=False))
        while loop.time() < deadline and (
            self._service.num_under_way or any(map(_num_unsent, connections))
        ):
            await asyncio.sleep(_POLL_S)
        for connection in connections:
            with suppress(OSError):  # its client has left
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        await asyncio.sleep(_POLL_S)  # grpc takes note
        await self._server.stop(0)


def _own_sockets(port: int, listening: bool) -> Iterator[socket.socket]:
    """Duplicates of this process's TCP sockets on this port, either those that listen or the
    others; grpc does not show its own. None where /proc is not there."""
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                number = os.dup(int(name))
                try:
                    found = socket.socket(fileno=number)
                except OSError:
                    os.close(number)
                    continue
                if (
                    found.family in (socket.AF_INET, socket.AF_INET6)
                    and found.getsockname()[1] == port
                    and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) == listening
                ):
                    yield found
                else:
                    found.close()


def _num_unsent(connection: socket.socket) -> int:
    """Bytes that the other side has not acknowledged yet."""
    try:
        answer = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])
