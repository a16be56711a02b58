"""What every test shares: one torch thread, no network, the same seed, models to test on."""

import inspect
import os
import tempfile
import typing
from pathlib import Path

import jaxtyping
import loopback
import pytest

# Before anything reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(
    path for path in (str(Path(loopback.__file__).parent), os.environ.get("PYTHONPATH")) if path
)
os.environ[loopback.REFUSALS_FILE] = tempfile.mkstemp(prefix="plait-refusals-")[1]

import torch

loopback.install()
torch.set_num_threads(1)

_jaxtyped = jaxtyping.jaxtyped


def _annotations(function):
    """Return what a signature says, also inside of unions, tuples and the like."""
    hints = list(getattr(function, "__annotations__", {}).values())
    for hint in hints:
        if typing.get_origin(hint) is not typing.Literal:
            hints += typing.get_args(hint)
    return hints


def _jaxtyped_at_less_cost(*, typechecker):
    """Check the same as jaxtyped, which takes longer than what it checks: look at parameters once
    and not twice, and keep account of axes only where a signature names some."""

    def check(decorated):
        hints = _annotations(decorated)
        # What stands in quotes may not be known yet; jaxtyped copes with that.
        in_quotes = any(isinstance(hint, str | typing.ForwardRef) for hint in hints)
        if in_quotes or not inspect.isfunction(decorated):
            return _jaxtyped(decorated, typechecker=typechecker)
        checked = typechecker(decorated)
        classes = filter(inspect.isclass, hints)
        has_axes = any(issubclass(each, jaxtyping.AbstractArray) for each in classes)
        return _jaxtyped(checked, typechecker=None) if has_axes else checked

    return check


# What the import hook of --jaxtyping-packages decorates plait's functions with.
jaxtyping.jaxtyped = _jaxtyped_at_less_cost


WITH_RUN = {f"tests/{name}_test.py" for name in ("pipeline", "readme", "readme_serve", "gpu")}
"""Files of tests on the finished run of the tiny recipe: making it takes longer than they do."""


def pytest_collection_modifyitems(items):
    for item in items:
        if "run_directory" in getattr(item, "fixturenames", ()):
            assert item.nodeid.partition("::")[0] in WITH_RUN, (
                f"put it into WITH_RUN: {item.nodeid}"
            )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give the tests of a file to one worker, so that what they share is made once; files come in
    the order of collection, for what takes longest stands first there.

    The marks of `--dist loadgroup` do nothing: pytest 9.2 passes over what xdist 3.8 writes.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "run" if file in WITH_RUN else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _no_network():
    """Fail what reached out of this machine, also where a library got over the refusal."""
    refusals = Path(os.environ[loopback.REFUSALS_FILE])
    refusals.write_text("")
    yield
    if found := refusals.read_text():
        pytest.fail(found, pytrace=False)


@pytest.fixture
def refusals():
    """Read the refusals of a test that expects them, so that it does not fail for them."""
    file = Path(os.environ[loopback.REFUSALS_FILE])

    def read() -> list[str]:
        found = file.read_text().splitlines()
        file.write_text("")
        return found

    return read


def pytest_unconfigure():
    Path(os.environ[loopback.REFUSALS_FILE]).unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


@pytest.fixture
def random_model():
    """Build models whose every parameter is random: initial values (D = 1) hide mistakes."""

    def build(spec, dtype=torch.float64, seed=0):
        from plait.model.lm import HybridLM

        model = HybridLM(spec, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                draw = torch.empty(weight.shape, dtype=torch.float64)
                weight.copy_(_randomize(draw, name, generator))
        return model

    return build


def _randomize(draw, name, generator):
    if name.endswith("A_log"):
        return draw.uniform_(0.0, 2.5, generator=generator)
    if name.endswith("dt_bias"):
        # dt from 1e-4 to 0.7
        return draw.uniform_(-9.0, 0.0, generator=generator)
    if name.endswith(("norm.weight", "norm_f.weight", ".D")):
        return draw.normal_(1.0, 0.3, generator=generator)
    if name.endswith("conv1d.weight"):
        return draw.normal_(0.0, 0.5, generator=generator)
    if name.endswith("bias"):
        return draw.normal_(0.0, 0.2, generator=generator)
    if name.endswith("embeddings.weight"):
        return draw.normal_(0.0, 1.0, generator=generator)
    return draw.normal_(0.0, draw.shape[-1] ** -0.5, generator=generator)


@pytest.fixture
def task_data() -> Path:
    """Public task data kept beside the repository; tests that want it skip where it is absent."""
    folder = Path(os.environ.get("PLAIT_TASK_DATA", Path(__file__).parent.parent / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no public task data at {folder}; PLAIT_TASK_DATA names another place")
    return folder
