"""A driver of the shared cluster in this process, and a model to tag with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_adapter import make
from tiny import checkpoint

from driving import driving
from raytag.local import LocalCluster


@pytest.fixture(scope="package")
def driver(cluster: LocalCluster) -> Iterator[None]:
    with driving(cluster):
        yield


@pytest.fixture(scope="package")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that says much: its tagging layer has large random weights."""
    folder = tmp_path_factory.mktemp("bulk")
    return make(folder / "adapter", checkpoint(folder / "base"), "tag").folder
