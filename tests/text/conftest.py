"""Where the public data is; and property tests that do not fail for being on a slow machine."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("raytag", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raytag")

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of public data, named by RAYTAG_DATA or beside the project."""
    folder = Path(os.environ.get("RAYTAG_DATA") or _ROOT / ".." / "shared" / "data").resolve()
    if not (folder / "ner").is_dir():
        pytest.skip(f"no public data at {folder}; set RAYTAG_DATA to its folder")
    return folder
