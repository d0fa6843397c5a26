"""Traces of requests: records, timelines for Perfetto, and drawings.

Imports point from the drawing to the data: records <- levels, window <- svg, text, perfetto
<- trace.
"""

from deepsched.timeline.records import RequestRecord
from deepsched.timeline.trace import Trace

__all__ = ["RequestRecord", "Trace"]
