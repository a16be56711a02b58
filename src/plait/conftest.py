"""What tests of several rooms share."""

import os
from pathlib import Path

import pytest

_SHARED = Path(__file__).parents[3] / "shared/data"


@pytest.fixture
def task_data() -> Path:
    """Public task data kept beside the repository; tests that want it skip where it is absent."""
    folder = Path(os.environ.get("PLAIT_TASK_DATA", _SHARED))
    if not folder.is_dir():
        pytest.skip(f"no public task data at {folder}; PLAIT_TASK_DATA names another place")
    return folder
