"""Tests of others, run against deepsched: python -m tests.peers."""
