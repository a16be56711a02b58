"""A model directory read one layer at a time, for models larger than memory.

The files are mapped, and mapped again for every read, so that what has been used leaves memory as
soon as nothing holds it.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from plait.core.errors import CheckpointError
from plait.model.hf import (
    cast,
    check_complete,
    check_file,
    local_directory,
    locate_tensors,
    open_tensors,
)
from plait.model.hf_config import read_spec
from plait.model.lm import Device, HybridLM, Layer


class ModelDirectory:
    """A model on disk: its spec, the shapes of its tensors, and any of them on demand.

    Raises: CheckpointError naming file and tensor if the weights do not fit the config; ConfigError
    if the config asks for something this family does not have. Only headers are read for that.
    """

    def __init__(self, source: str | Path) -> None:
        self.path = local_directory(source)
        self.spec = read_spec(self.path)
        empty = HybridLM(self.spec, device="meta")
        self.shapes = {name: tuple(weight.shape) for name, weight in empty.named_parameters()}
        """Of every tensor, in the model's order."""
        self._files: dict[str, Path] = {}
        for path, names in locate_tensors(self.path).items():
            self._files |= dict.fromkeys(check_file(path, names, self.shapes), path)
        check_complete(self.path, self._files, self.shapes)

    @property
    def files(self) -> list[Path]:
        """Files that hold weights."""
        return sorted(set(self._files.values()))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the embedding: that of activations unless something else is asked for."""
        return self.tensor("backbone.embeddings.weight").dtype

    def tensor(self, name: str, dtype: torch.dtype | None = None, device: Device = None) -> Tensor:
        """Return one tensor, in its own dtype unless another is given."""
        if name not in self._files:
            raise CheckpointError(f"{self.path}: a model of this config has no tensor {name}")
        with open_tensors(self._files[name], device) as file:
            return cast(name, file.get_tensor(name), dtype)

    def row_blocks(
        self, name: str, num_rows: int, dtype: torch.dtype | None = None, device: Device = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield consecutive blocks of at most `num_rows` rows of a matrix, each with its start."""
        for start in range(0, self.shapes[name][0], num_rows):
            with open_tensors(self._files[name], device) as file:
                yield start, cast(name, file.get_slice(name)[start : start + num_rows], dtype)

    def layer(self, index: int, dtype: torch.dtype | None = None, device: Device = None) -> Layer:
        """Return one layer with its weights, without gradients."""
        layer = Layer(self.spec, index, torch.float32, "meta")
        prefix = f"backbone.layers.{index}."
        tensors = {name: self.tensor(prefix + name, dtype, device) for name in layer.state_dict()}
        layer.load_state_dict(tensors, assign=True)
        return layer.requires_grad_(False)
