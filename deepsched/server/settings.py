"""What can be set of a server, beside its models."""

from __future__ import annotations

from typing import Annotated

import msgspec

MIB = 2**20

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# So long that milliseconds and counts fit into the 32 bits of gRPC's options.
_MOST_SECONDS = 1e6
_MOST = 2**31 - 1

Seconds = Annotated[float, msgspec.Meta(ge=0, le=_MOST_SECONDS)]
Patience = Annotated[float, msgspec.Meta(gt=0, le=_MOST_SECONDS)]
Count = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a server listens, and its limits."""

    host: str = "127.0.0.1"
    port: Port = 8000
    """Of HTTP; 0: any free one."""
    grpc_port: Port = 8001
    """0: any free one."""
    max_body_bytes: Count = 128 * MIB
    """Of an inference, as it is sent and as it is after decompression; of any message of gRPC."""
    max_json_bytes: Count = 32 * MIB
    """Of the JSON in a request; of a message of gRPC without its raw tensors. Reading it keeps the
    event loop for about 50 ms by 10 MB."""
    max_connections: Count = 1000
    """Of HTTP at once, and of gRPC. One more is closed; of HTTP it gets 503 first."""
    max_grpc_requests: Count = 2048
    """Of gRPC at once. One more gets RESOURCE_EXHAUSTED."""
    header_timeout: Patience = 10.0
    """Seconds from a connection's first byte of a request to the end of its headers."""
    body_timeout: Patience = 60.0
    """Seconds in which a request's body must have arrived."""
    access_log: str = ""
    """A line on stdout for each request: json or text; empty: none."""
    trace_share: float | None = None
    """Of the requests, to record as OpenTelemetry's spans, 0 to 1; those that bring a trace context
    follow that. None: none, and OpenTelemetry is not imported."""
    keep_alive: Patience = 60.0
    """Seconds that a connection without a request is kept."""
    watch: bool = False
    """Whether models are loaded when their files change."""
    lame_duck: Seconds = 5.0
    """Seconds from a signal to stop, in which requests are still taken."""
    grace: Seconds = 30.0
    """Seconds after those in which what was accepted is answered."""
    tls_cert: str | None = None
    """Path of a certificate, with those between it and its authority, in PEM."""
    tls_key: str | None = None
    """Path of its key, not encrypted."""
    tls_client_ca: str | None = None
    """Path of the authorities that clients' certificates must come from: mutual TLS."""
    token_file: str | None = None
    """Path of a file with the token of the control endpoints."""
