"""What all tests share: an S3 server and a Ray cluster, each started once and ended by pid."""

from collections.abc import Iterator

import pytest

from raytag.local import LocalCluster

pytest_plugins = ["s3"]


@pytest.fixture(scope="session")
def cluster(s3: object) -> Iterator[LocalCluster]:
    """A local Ray cluster in token mode; its workers reach the S3 server too."""
    with LocalCluster(cpus=2) as running:
        yield running
