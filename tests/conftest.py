"""What all tests share: S3 servers and a Ray cluster, each started once and ended by pid; and
where the public data is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytag.local import LocalCluster

pytest_plugins = ["s3", "ceph"]

# Ray reads it once, when it is imported: some tests are drivers of the cluster themselves.
os.environ["RAY_AUTH_MODE"] = "token"


@pytest.fixture(scope="session")
def cluster(s3: object) -> Iterator[LocalCluster]:
    """A local Ray cluster in token mode; its workers reach the S3 server too."""
    with LocalCluster(cpus=2) as running:
        yield running


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of public data, named by RAYTAG_DATA or beside the project."""
    beside = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("RAYTAG_DATA") or beside).resolve()
    if not (folder / "ner").is_dir():
        pytest.skip(f"no public data at {folder}; set RAYTAG_DATA to its folder")
    return folder
