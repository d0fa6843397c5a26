"""The machine, and the part of it that this process may use."""
