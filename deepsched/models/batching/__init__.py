"""Requests of several callers in one run: which models allow that, and whether it pays."""
