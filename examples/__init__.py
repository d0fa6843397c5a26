"""Programs to start from; see README.md."""
