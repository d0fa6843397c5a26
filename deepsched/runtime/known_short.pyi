"""Native functions only."""
