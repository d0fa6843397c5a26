"""Servers with several worker processes, each of which has cores of its own."""
