"""The ways to call an engine."""
