from pathlib import Path

import pytest
from mini_recipe import OVERRIDES, RECIPE

from plait.cli.run import run_recipe


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory) -> Path:
    """The run folder of the tiny recipe, finished, in test size."""
    out = tmp_path_factory.mktemp("runs")
    run_recipe(RECIPE, out, OVERRIDES, None)
    return out / "tiny"
