"""TLS, and mutual TLS, of both listeners."""

from __future__ import annotations

import ssl
from typing import Any

import grpc

from deepsched.errors import OptionError
from deepsched.server.settings import Settings


def http_options(settings: Settings) -> dict[str, Any]:
    """Options of uvicorn's Config.

    Raises:
        OptionError: a file cannot be read, the key is not the certificate's, or one is missing.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        given = [
            name for name in ("tls_cert", "tls_key", "tls_client_ca") if getattr(settings, name)
        ]
        if given:
            raise OptionError(f"{given[0]} needs both tls_cert and tls_key")
        return {}
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        raise OptionError(
            f"tls_cert {settings.tls_cert} and its key {settings.tls_key} cannot be used: {error}"
        ) from None
    options = {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}
    if settings.tls_client_ca is None:
        return options
    try:
        context.load_verify_locations(settings.tls_client_ca)
    except (OSError, ssl.SSLError) as error:
        raise OptionError(
            f"tls_client_ca {settings.tls_client_ca} cannot be used: {error}"
        ) from None
    return {
        **options,
        "ssl_ca_certs": settings.tls_client_ca,
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
    }


def grpc_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Credentials of gRPC's listener, from files that `http_options` has checked; None without
    TLS."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    chain, key = _read(settings.tls_cert), _read(settings.tls_key)
    roots = None if settings.tls_client_ca is None else _read(settings.tls_client_ca)
    return grpc.ssl_server_credentials(
        [(key, chain)], root_certificates=roots, require_client_auth=roots is not None
    )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
