"""deepsched on Ray: replicas of Ray Serve and workers of Ray Data that hold cores of their own.

Needs the extra `ray`: pip install 'deepsched[ray]'. Ray decides on which node a replica runs, and
restarts it. The replica leases `num_cores` cores there, and decides what these do.
"""

from __future__ import annotations

try:
    import ray as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "deepsched.ray needs Ray, which is not installed: pip install 'deepsched[ray]'"
    ) from error

from deepsched.ray.ports import Address, ServerReplica, addresses, server_application
from deepsched.ray.predictor import Predictor, map_batches
from deepsched.ray.replica import Replica, application

__all__ = [
    "Address",
    "Predictor",
    "Replica",
    "ServerReplica",
    "addresses",
    "application",
    "map_batches",
    "server_application",
]
