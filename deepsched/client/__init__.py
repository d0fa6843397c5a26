"""Clients of servers that speak the Open Inference Protocol v2, as `deepsched benchmark --server`
needs them: little of their own between the clock and the wire."""
