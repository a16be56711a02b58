"""What every test shares: one torch thread, no network, the same seed."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


@pytest.fixture
def task_data() -> Path:
    """Public task data kept beside the repository; tests that want it skip where it is absent."""
    folder = Path(os.environ.get("PLAIT_TASK_DATA", Path(__file__).parent.parent / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no public task data at {folder}; PLAIT_TASK_DATA names another place")
    return folder
