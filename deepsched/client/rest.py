"""RestClient: the Open Inference Protocol v2 over HTTP/1.1, as a load generator needs it.

http.client parses headers as e-mail, for more than a small request costs the server. Here a
request is one `sendall` of bytes made before, and an answer is read line by line.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import quote

import numpy as np

from deepsched.client.protocol import RemoteModel, RemoteTensor
from deepsched.errors import ServerError
from deepsched.server.tensors import to_raw

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 300.0
_MOST_IN_MESSAGE = 500  # characters of a server's message


class Answer(NamedTuple):
    """An answer as it came."""

    status: int
    headers: dict[bytes, bytes]
    """By name in lower case."""
    body: bytes


class _Connection:
    """One connection, of one thread."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self.socket = socket.create_connection((host, port), _CONNECT_SECONDS)
        self.socket.settimeout(_ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=host)
        self.reader = cast(BinaryIO, self.socket.makefile("rb", buffering=256 * 1024))
        self.is_used = False

    def exchange(self, request: bytes) -> Answer:
        """Sends a request and reads its answer.

        Raises:
            ConnectionError: the server has closed the connection.
        """
        self.socket.sendall(request)
        return read_answer(self.reader)

    def close(self) -> None:
        self.reader.close()
        self.socket.close()


def read_answer(reader: BinaryIO) -> Answer:
    """Reads an answer of HTTP/1.1; informational ones (1xx) before it are skipped.

    Raises:
        ConnectionError: the connection ended before the answer did.
        ServerError: it is no answer of HTTP/1.1.

    >>> import io
    >>> text = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}"
    >>> read_answer(io.BufferedReader(io.BytesIO(text)))
    Answer(status=200, headers={b'content-length': b'2'}, body=b'{}')
    """
    while True:
        line = reader.readline(65536)
        if not line:
            raise ConnectionResetError("the server closed the connection")
        words = line.split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise ServerError(f"expected an answer of HTTP/1.1, got {line[:80]!r}")
        status = int(words[1])
        headers = {}
        while (line := reader.readline(65536)) not in (b"\r\n", b"\n"):
            name, colon, value = line.partition(b":")
            if not colon:
                raise ConnectionResetError("the connection ended in the middle of an answer")
            headers[name.strip().lower()] = value.strip()
        if status >= 200:
            return Answer(status, headers, _read_body(reader, status, headers))


def _read_body(reader: BinaryIO, status: int, headers: dict[bytes, bytes]) -> bytes:
    if status in (204, 304):
        return b""
    if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
        parts = []
        while size := int(reader.readline(1024).split(b";")[0] or b"0", 16):
            parts.append(_read_exactly(reader, size))
            reader.readline(1024)
        while reader.readline(65536) not in (b"\r\n", b"\n", b""):
            pass  # trailers
        return b"".join(parts)
    if b"content-length" in headers:
        return _read_exactly(reader, int(headers[b"content-length"]))
    return reader.read()


def _read_exactly(reader: BinaryIO, size: int) -> bytes:
    data = reader.read(size)
    if len(data) < size:
        raise ConnectionResetError("the connection ended in the middle of an answer")
    return data


class RestClient:
    """See the module."""

    def __init__(self, scheme: str, host: str, port: int, path: str, *, is_binary: bool) -> None:
        self._host, self._port = host, port
        self._url = f"{scheme}://{host}:{port}"
        self._path = path.rstrip("/")
        self._tls = ssl.create_default_context() if scheme == "https" else None
        self._is_binary = is_binary
        self._of_thread = threading.local()
        self._connections: list[_Connection] = []

    # --- What a benchmark asks before it begins ----------------------------------------------

    def server(self) -> str:
        """The server's name and version."""
        found = self._ask("GET", "/v2")
        return f"{found.get('name', 'a server')} {found.get('version', '')}".strip()

    def models(self) -> list[str]:
        """Names in the repository's index."""
        try:
            index = self._ask("POST", "/v2/repository/index", b"{}")
        except ServerError:
            return []  # an extension of the protocol
        return list(dict.fromkeys(str(entry.get("name")) for entry in index))

    def model(self, name: str, version: str) -> RemoteModel:
        """What the server says of a model."""
        found = self._ask("GET", self._model_path(name, version))
        inputs = tuple(
            RemoteTensor(it["name"], it["datatype"], tuple(map(int, it["shape"])))
            for it in found["inputs"]
        )
        return RemoteModel(name, version, inputs)

    def _ask(self, method: str, path: str, body: bytes = b"") -> Any:
        answer = self._exchange(self._request(method, path, body))
        if answer.status != 200:
            raise ServerError(f"{method} {self._url}{path}: {_explained(answer)}")
        try:
            return json.loads(answer.body)
        except ValueError as error:
            raise ServerError(f"{method} {self._url}{path} answered no JSON: {error}") from error

    # --- Requests ----------------------------------------------------------------------------

    def sender(
        self, model: RemoteModel, arrays: Sequence[np.ndarray[Any, Any]]
    ) -> Callable[[], None]:
        """See protocol.Client."""
        path = f"{self._model_path(model.name, model.version)}/infer"
        body, headers = self._encoded(model, arrays)
        request = self._request("POST", path, body, headers)

        def send() -> None:
            answer = self._exchange(request)
            if answer.status != 200:
                raise ServerError(f"{self._url}{path}: {_explained(answer)}")

        return send

    def _encoded(
        self, model: RemoteModel, arrays: Sequence[np.ndarray[Any, Any]]
    ) -> tuple[bytes, str]:
        """A body and the headers that belong to it."""
        inputs: list[dict[str, Any]] = []
        raw: list[bytes] = []
        for tensor, array in zip(model.inputs, arrays, strict=True):
            described: dict[str, Any] = {
                "name": tensor.name,
                "shape": list(array.shape),
                "datatype": tensor.datatype,
            }
            if self._is_binary:
                raw.append(bytes(to_raw(array)))
                described["parameters"] = {"binary_data_size": len(raw[-1])}
            else:
                described["data"] = array.ravel().tolist()
            inputs.append(described)
        shell: dict[str, Any] = {"inputs": inputs}
        if not self._is_binary:
            return json.dumps(shell).encode(), "Content-Type: application/json\r\n"
        shell["parameters"] = {"binary_data_output": True}
        text = json.dumps(shell).encode()
        return b"".join([text, *raw]), (
            "Content-Type: application/octet-stream\r\n"
            f"Inference-Header-Content-Length: {len(text)}\r\n"
        )

    def _request(self, method: str, path: str, body: bytes, headers: str = "") -> bytes:
        head = (
            f"{method} {self._path}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"User-Agent: deepsched\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        )
        return head.encode() + body

    def _exchange(self, request: bytes) -> Answer:
        """On this thread's connection. A server may close one that has been idle: then, and only
        then, the request is sent once more."""
        while True:
            connection = self._connection()
            was_used, connection.is_used = connection.is_used, True
            try:
                answer = connection.exchange(request)
            except (ConnectionError, TimeoutError, OSError) as error:
                self._forget(connection)
                if was_used and isinstance(error, ConnectionError):
                    continue
                raise ServerError(f"no answer from {self._url}: {error}") from error
            if answer.headers.get(b"connection", b"").lower() == b"close":
                self._forget(connection)
            return answer

    def _connection(self) -> _Connection:
        found: _Connection | None = getattr(self._of_thread, "connection", None)
        if found is None:
            try:
                found = _Connection(self._host, self._port, self._tls)
            except OSError as error:
                raise ServerError(
                    f"cannot connect to {self._url}: {error}; is the server running there?"
                ) from error
            self._of_thread.connection = found
            self._connections.append(found)
        return found

    def _forget(self, connection: _Connection) -> None:
        connection.close()
        self._connections.remove(connection)
        self._of_thread.connection = None

    def close(self) -> None:
        """Ends the connections."""
        for connection in self._connections:
            connection.close()

    @staticmethod
    def _model_path(name: str, version: str) -> str:
        path = f"/v2/models/{quote(name, safe='')}"
        return f"{path}/versions/{quote(version, safe='')}" if version else path


def _explained(answer: Answer) -> str:
    """The status and the server's own message."""
    text = answer.body.decode(errors="replace").strip()
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = str(json.loads(text)["error"])
    return f"the server answered {answer.status}: {text[:_MOST_IN_MESSAGE] or '(no message)'}"
