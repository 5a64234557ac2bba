"""This process as a driver of the shared cluster, as a job's driver is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from raytag.local import LocalCluster


@contextmanager
def driving(cluster: LocalCluster) -> Iterator[None]:
    """Connected to the cluster for as long as this is entered."""
    import ray

    from raytag.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            if name.startswith("RAY_") or name == "PATH":
                patch.setenv(name, value)
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        connect("a test")
        yield
        ray.shutdown()
