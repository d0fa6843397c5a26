"""Access: who may use what changes the server, or shows how it is set up."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping

from deepsched.errors import OptionError
from deepsched.server.errors import Forbidden, Unauthorized
from deepsched.server.listening import is_loopback
from deepsched.server.settings import Settings

TOKEN_VARIABLE = "DEEPSCHED_SERVE_TOKEN"

_LEAST = 16
"""Characters of a token: 16 random letters cannot be guessed over a network."""


class Access:
    """The rule for the control endpoints: models come and go, shared memory, configuration.

    With a token, requests must bring it. Without one, they are not for web pages of others. With
    mutual TLS, whoever else got a connection may use them. Otherwise they are for programs of this
    machine alone, so they are off if the server listens on other addresses, and for what a proxy
    passes on.

    Raises:
        OptionError: the token cannot be read, or is too short.
    """

    def __init__(self, settings: Settings) -> None:
        self._host = settings.host
        self._is_local = is_loopback(settings.host)
        self._is_mutual = settings.tls_client_ca is not None
        self._token = _token(settings)

    def check(self, headers: Mapping[str, str]) -> None:
        """`headers`: of HTTP, or gRPC's metadata, their names in lower case.

        Raises:
            Unauthorized: the token is missing or wrong.
            Forbidden: nobody may use them, or not this caller.
        """
        if self._token is not None:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(
                given.strip().encode(), self._token
            ):
                raise Unauthorized(
                    "this needs the server's token, as the header 'Authorization: Bearer TOKEN'"
                )
            return
        if not self._is_mutual:
            if not self._is_local:
                raise Forbidden(
                    f"off, since the server listens on {self._host} and has no token: start it "
                    f"with --token-file FILE or {TOKEN_VARIABLE}, or with mutual TLS"
                )
            _check_near(headers)
        _check_page(headers)


_OF_PROXIES = ("forwarded", "x-forwarded-for", "via")


def _check_near(headers: Mapping[str, str]) -> None:
    """Raises Forbidden where the request comes from elsewhere: through a proxy on this machine, or
    from a browser for a name that its owner lets point to this machine."""
    for name in _OF_PROXIES:
        if name in headers:
            raise Forbidden(
                f"without a token this is not for what comes through a proxy, got the header {name}"
            )
    host = headers.get("host")
    if host is not None and not _is_local_name(host):
        raise Forbidden(
            f"without a token this is for addresses such as localhost, not for {host!r:.80}"
        )


def _check_page(headers: Mapping[str, str]) -> None:
    """Raises Forbidden where a browser asks for a page of another origin: it sends such requests to
    any address, and shows the certificate that its user has."""
    host = headers.get("host")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Forbidden(f"without a token this is not for web pages, got origin {origin!r:.80}")


def _is_local_name(host: str) -> bool:
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:  # never by DNS, which says what the owner of a name wants
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _token(settings: Settings) -> bytes | None:
    if settings.token_file is None:
        text, where = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if text is None:
            return None
    else:
        where = settings.token_file
        try:
            with open(where, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"token_file {where} cannot be read: {error}") from None
    token = text.strip()
    if len(token) < _LEAST:
        raise OptionError(
            f"the token in {where} has {len(token)} characters; it needs {_LEAST} or more, such as "
            "those of `openssl rand -hex 32`"
        )
    return token.encode()
