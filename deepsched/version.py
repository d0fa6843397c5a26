"""The version, apart from what needs a compiler, so that the build can read it."""

__version__ = "0.1.0"
