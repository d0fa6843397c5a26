"""Other thread pools in this process, which compete with the streams for their cores."""

from __future__ import annotations

import os
from typing import Any

from deepsched.doctor.diagnosis import Check, ok, unknown, warn
from deepsched.doctor.host import NOT_LOCAL, Host

BINDING_VARIABLES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""These make an OpenMP library pin the thread that loads it."""

_SIZE_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def thread_pools(host: Host) -> Check:
    """The thread pools of the BLAS and OpenMP libraries loaded now."""
    name = "thread_pools"
    if not host.is_local:
        return unknown(name, NOT_LOCAL)
    from threadpoolctl import threadpool_info

    pools: list[dict[str, Any]] = threadpool_info()
    variables = (*_SIZE_VARIABLES, *BINDING_VARIABLES)
    data = {
        "pools": pools,
        "environment": {variable: os.environ.get(variable) for variable in variables},
    }
    found = ", ".join(
        f"{pool['internal_api']} ({pool['user_api']}) of {pool['num_threads']}" for pool in pools
    )
    crowds = [pool for pool in pools if pool["num_threads"] > 1]
    if any(pool["user_api"] == "openmp" for pool in crowds):
        return warn(
            name,
            f"threads: {found}",
            "OpenMP's threads spin for a while after each parallel region, on the cores of the "
            "streams. Only the program knows whether a library (PyTorch, scikit-learn, MKL) runs "
            "such regions.",
            "Start with OMP_NUM_THREADS=1, or wrap the code around inference in `with "
            "threadpoolctl.threadpool_limits(1):`. Neither affects deepsched: ONNX Runtime has its "
            "own pool.",
            **data,
        )
    if crowds:
        return ok(
            name,
            f"threads: {found}",
            "They run only while numpy or scipy multiply matrices. If your program does so during "
            "inference, limit them: OPENBLAS_NUM_THREADS=1, or threadpoolctl.threadpool_limits(1).",
            **data,
        )
    return ok(name, f"threads: {found}" if pools else "none loaded", **data)
