"""Access: who may use what changes the server, or shows how it is set up."""

from __future__ import annotations

import hmac
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

    With a token, requests must bring it. With mutual TLS and no token, whoever got a connection may
    use them. Otherwise they are for programs of this machine alone, so they are off if the server
    listens on other addresses, and for web pages, which a browser on this machine may show.

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
        elif not self._is_mutual:
            if not self._is_local:
                raise Forbidden(
                    f"off, since the server listens on {self._host} and has no token: start it "
                    f"with --token-file FILE or {TOKEN_VARIABLE}, or with mutual TLS"
                )
            _check_page(headers)


def _check_page(headers: Mapping[str, str]) -> None:
    """Raises Forbidden where a browser asks for a page of another origin: it sends such requests to
    any address, also to a name that its owner lets point to this machine."""
    host = headers.get("host")
    if host is not None and not _is_local_name(host):
        raise Forbidden(
            f"without a token this is for addresses such as localhost, not for {host!r:.80}"
        )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Forbidden(f"without a token this is not for web pages, got origin {origin!r:.80}")


def _is_local_name(host: str) -> bool:
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return name == "localhost" or (name[:1].isdigit() or ":" in name) and is_loopback(name)


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
