"""The access log: a line for each request that ended, on stdout; off unless asked for.

Lines are written by a thread of their own: a reader of stdout that stalls holds up the log, and no
request. What the log has no room for meanwhile is counted, and said once there is room again.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from typing import IO, Any

from deepsched.errors import OptionError
from deepsched.formatting import printable
from deepsched.server.inference import Ended

FORMATS = ("json", "text")
_CAPACITY = 10_000  # lines


class AccessLog:
    """Takes what ended, as `Inference.on_end`.

    Args:
        format: "json", an object a line, or "text".
        file: where to; None for stdout.

    Raises:
        OptionError: the format is another.
    """

    def __init__(self, format: str, file: IO[str] | None = None) -> None:
        if format not in FORMATS:
            raise OptionError(f"access_log must be one of {', '.join(FORMATS)}, got {format!r}")
        self._line = _as_json if format == "json" else _as_text
        self._file = sys.stdout if file is None else file
        self._queue: queue.Queue[Ended | None] = queue.Queue(_CAPACITY)
        self._num_lost = 0
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def __call__(self, ended: Ended) -> None:
        """A request ended. Never blocks."""
        try:
            self._queue.put_nowait(ended)
        except queue.Full:
            self._num_lost += 1

    def close(self) -> None:
        """Writes what is left, for a second at most."""
        try:
            self._queue.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(1)

    def _write(self) -> None:
        while (ended := self._queue.get()) is not None:
            lines = [self._line(ended)]
            if self._num_lost and self._queue.empty():
                lost, self._num_lost = self._num_lost, 0
                print(f"deepsched: the access log lacks {lost} lines", file=sys.stderr)
            try:
                self._file.write("".join(f"{line}\n" for line in lines))
                self._file.flush()
            except (OSError, ValueError):
                return  # nobody reads it any more


def fields(ended: Ended) -> dict[str, Any]:
    """What is logged of a request; times in seconds and milliseconds."""
    now, monotonic = time.time(), time.monotonic_ns()
    return {
        "time": round(now - (monotonic - ended.began_ns) / 1e9, 6),
        "protocol": ended.protocol,
        "peer": ended.peer,
        "model": ended.model,
        "version": ended.version,
        "id": ended.request_id,
        "outcome": ended.outcome,
        "ms": round((ended.ended_ns - ended.began_ns) / 1e6, 3),
    }


def _as_json(ended: Ended) -> str:
    return json.dumps(fields(ended))


def _as_text(ended: Ended) -> str:
    it = fields(ended)
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(it["time"]))
    text = (
        f"{when}.{int(it['time'] % 1 * 1e3):03d}Z {it['protocol']} {it['peer'] or '-'} "
        f"{it['model']}/{it['version'] or '-'} {it['outcome']} {it['ms']} ms {it['id'] or '-'}"
    )
    return printable(text)  # names and ids come from the client: one request, one line
