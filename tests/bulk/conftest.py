"""A driver of the shared cluster in this process, and a model to tag with."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_adapter import make
from tiny import checkpoint

from raytag.local import LocalCluster


@pytest.fixture(scope="package")
def driver(cluster: LocalCluster) -> Iterator[None]:
    """This process, connected to the cluster as a job's driver is."""
    import ray

    from raytag.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            if name.startswith("RAY_") or name == "PATH":
                patch.setenv(name, value)
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        connect("tag.py")
        yield
        ray.shutdown()


@pytest.fixture(scope="package")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that says much: its tagging layer has large random weights."""
    folder = tmp_path_factory.mktemp("bulk")
    return make(folder / "adapter", checkpoint(folder / "base"), "tag").folder
