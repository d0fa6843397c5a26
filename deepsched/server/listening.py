"""Listening sockets: opened such that a port in use is an error, closed such that no connection
that the kernel has accepted is reset."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import socket
import struct
from contextlib import suppress

from deepsched.errors import OptionError

_BACKLOG = 2048
"""The kernel takes no more than net.core.somaxconn."""

# Connections inherit these: one whose other machine is gone ends after 90 s, though nothing is sent
# while a request runs or waits.
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)

_SO_ATTACH_FILTER = 26  # of Linux; socket has no name for it

# Classic BPF: load the byte of TCP's flags; if SYN is among them drop the packet, else keep all.
_FILTER = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),
        (0x45, 0, 1, 0x02),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 2**32 - 1),
    )
)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the first address of `host`.

    Raises:
        OptionError: the port is in use or not for this user, or the host is none of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise OptionError(f"host {host!r} has no address: {error}") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port whose connections linger after the last server is free; one that another listens on
        # is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for level, option, value in _KEEP_ALIVE:
            listener.setsockopt(level, option, value)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OptionError(why_not(host, port, error)) from None
    return listener


def why_not(host: str, port: int, error: OSError) -> str:
    """Why nothing can listen there, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another, or 0 for any that is free"
    if error.errno == errno.EACCES:
        return f"port {port} is not for this user; choose one from 1024 on"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host} is no address of this machine; 0.0.0.0 is for all that it has"
    return f"port {port} of {host} cannot be used: {error.strerror}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0"), is_loopback("::1")
    (True, False, True)
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(str(it[4][0]).partition("%")[0]).is_loopback for it in found)


def refuse_new(listener: socket.socket) -> None:
    """From here on the kernel takes no new connection for `listener`, as if its packets were lost.

    Closing a listener resets the connections that the kernel has accepted and the process has not.
    With this, it can take these first; who comes later tries again, and finds the listener closed.
    """
    program = ctypes.create_string_buffer(_FILTER, len(_FILTER))
    count = len(_FILTER) // 8
    with suppress(OSError):  # a sandbox; a connection may then be reset
        listener.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", count, ctypes.addressof(program)),
        )
