"""Contexts with as many streams as a test needs, whatever machine it runs on."""

from __future__ import annotations

from deepsched import Context, Topology


def unpinned(num_streams, scheduler="multi_stream", **options):
    topology = Topology.synthetic(packages=1, cores_per_l3=num_streams)
    return Context(
        topology=topology, num_streams=num_streams, scheduler=scheduler, pin="none", **options
    )


def two_sessions():
    """Two streams of two cores: each has a session of its own, so that weights can be shared."""
    topology = Topology.synthetic(packages=1, cores_per_l3=4)
    return Context(topology=topology, num_streams=2, scheduler="multi_stream", pin="none")
