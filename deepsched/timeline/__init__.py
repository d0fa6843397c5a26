"""What became of each request, as data, for Perfetto, and as pictures."""

from deepsched.timeline.trace import RequestRecord, Trace

__all__ = ["RequestRecord", "Trace"]
