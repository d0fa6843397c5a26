"""The models of a server: where they come from, how they are opened, which of them serve."""

from deepsched.server.repository.repository import IndexEntry, LoadError, Repository
from deepsched.server.repository.streams import Streams
from deepsched.server.repository.watching import Watcher

__all__ = ["IndexEntry", "LoadError", "Repository", "Streams", "Watcher"]
