"""A root for a registry, on either kind of storage, and adapters to publish."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from registry_cases import write_adapter

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty registry."""
    if request.param == "local":
        return str(tmp_path / "registry")
    client: S3Client = request.getfixturevalue("s3")
    bucket = f"registry-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/deep/root"


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    """An adapter's folder: its weights are none, but its files are what they should be."""
    return write_adapter(tmp_path / "adapter")
