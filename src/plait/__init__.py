"""plait: open Nemotron Nano 2, from raw pages to a served hybrid language model.

    spec = plait.ModelSpec.preset("nano-9b-v2");  spec.num_parameters
    model = plait.load("path/or/hub-id");  logits = model(tokens)
    engine = plait.Engine.from_path("path");  engine.generate(["..."], plait.SamplingParams())

Names below are the whole public surface. They load on first use, so `import plait` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.core.errors import PlaitError
    from plait.engine.engine import Engine
    from plait.engine.request import SamplingParams
    from plait.model.hf import load, save
    from plait.model.lm import HybridLM
    from plait.model.spec import ModelSpec

__all__ = [
    "Engine",
    "HybridLM",
    "ModelSpec",
    "PlaitError",
    "SamplingParams",
    "load",
    "save",
]

_HOMES = {
    "Engine": "plait.engine.engine",
    "HybridLM": "plait.model.lm",
    "ModelSpec": "plait.model.spec",
    "PlaitError": "plait.core.errors",
    "SamplingParams": "plait.engine.request",
    "load": "plait.model.hf",
    "save": "plait.model.hf",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
