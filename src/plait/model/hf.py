"""Model directories as Hugging Face has them: read, write, byte for byte.

A directory holds config.json (see `hf_config`), safetensors in one file or in shards with an index,
generation_config.json and a model card; tokenizer files lie beside them. Every tensor keeps the
dtype it has in the file, so an import that is exported again is the same tensor by tensor. Pickled
checkpoints are refused: loading one runs code.

Loading builds the model without memory (meta device) and hands it the tensors of the mapped files,
so there is never a second copy of the weights.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plait.core.artifact import atomic_directory, disk_errors
from plait.core.errors import CheckpointError
from plait.model.count import describe
from plait.model.hf_config import CONFIG_FILE, config_from_spec, is_hub_id, read_spec
from plait.model.lm import Device, HybridLM
from plait.model.spec import ModelSpec

INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
DTYPES = ("F64", "F32", "F16", "BF16")
"""Of weights, by the names that safetensors gives them."""
COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
# Rounding these changes how fast every head forgets, so a narrower dtype is not forced on them.
DECAY_PARAMETERS = ("A_log", "D", "dt_bias")


def load(source: str | Path, dtype: torch.dtype | None = None, device: Device = None) -> HybridLM:
    """Load a model from a directory or a Hugging Face hub id.

    Without `dtype` every tensor keeps its own. With it, all are cast, except that A_log, D and
    dt_bias are never narrowed: a float32 decay stays float32 in a bfloat16 model.

    Raises: CheckpointError naming file and tensor if the weights do not fit the config;
    ConfigError if the config asks for something this family does not have.
    """
    directory = local_directory(source)
    spec = read_spec(directory)
    model = HybridLM(spec, device="meta")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for path, names in locate_tensors(directory).items():
        wanted = check_file(path, names, shapes)
        with open_tensors(path, device) as file:
            tensors |= {name: cast(name, file.get_tensor(name), dtype) for name in wanted}
    check_complete(directory, tensors, shapes)
    model.load_state_dict(tensors, assign=True)
    return model


def local_directory(source: str | Path) -> Path:
    """Return the directory of a model on this machine; one named by a hub id is downloaded first.

    Raises: CheckpointError if the hub does not give it.
    """
    return _download(str(source)) if is_hub_id(source) else Path(source)


def save(
    model: HybridLM,
    directory: str | Path,
    *,
    tokenizer_from: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model directory that plait, transformers, vLLM and llama.cpp's converter can read.

    Tensors keep their dtypes. Tokenizer files, and a generation_config.json if there is one, are
    copied from the directory `tokenizer_from`. The directory appears whole or not at all; in an
    existing model directory config and weights are replaced, other files are kept, among them its
    generation_config.json and README.md.

    Raises: CheckpointError if `directory` is a file or holds something that is not a model, or
    `tokenizer_from` is no directory.
    """
    target = Path(directory)
    if target.is_file():
        raise CheckpointError(f"{target}: is a file; a model is a directory, give a new one")
    if target.exists() and any(target.iterdir()) and not (target / CONFIG_FILE).exists():
        raise CheckpointError(
            f"{target}: is not empty and holds no {CONFIG_FILE}, so it is not a model that may be "
            "replaced; give a new directory"
        )
    with atomic_directory(target) as partial:
        if target.exists():
            weights = shutil.ignore_patterns("model*.safetensors", INDEX_FILE)
            shutil.copytree(target, partial, ignore=weights, dirs_exist_ok=True)
        tensors = model.state_dict()
        write_files(
            partial,
            model.spec,
            {name: tensor.nbytes for name, tensor in tensors.items()},
            tensors.__getitem__,
            model.backbone.embeddings.weight.dtype,
            tokenizer_from=tokenizer_from,
            max_shard_bytes=max_shard_bytes,
        )


def write_files(
    directory: Path,
    spec: ModelSpec,
    num_bytes: Mapping[str, int],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    *,
    tokenizer_from: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the files of a model whose tensors `read` gives by name, one shard at a time.

    `num_bytes` names all tensors with their sizes; `dtype` is the one that config.json states. A
    generation_config.json and a README.md that are there already are kept: they may be the user's.

    Raises: CheckpointError if `tokenizer_from` is no directory.
    """
    if tokenizer_from is not None and not Path(tokenizer_from).is_dir():
        raise CheckpointError(
            f"{tokenizer_from}: no such directory; tokenizer files are copied from a directory"
        )
    _write_weights(num_bytes, read, directory, max_shard_bytes)
    name_of_dtype = str(dtype).removeprefix("torch.")
    _write_json(directory / CONFIG_FILE, config_from_spec(spec, name_of_dtype))
    if not (generation := directory / "generation_config.json").exists():
        _write_json(generation, _generation_config(spec))
    if not (card := directory / "README.md").exists():
        card.write_text(_model_card(spec), encoding="utf-8")
    for name in COMPANION_FILES if tokenizer_from is not None else ():
        if (found := Path(tokenizer_from or "") / name).exists():
            shutil.copyfile(found, directory / name)


def locate_tensors(directory: Path) -> dict[Path, list[str] | None]:
    """Return files and the names to read from each; None means all it has.

    Raises: CheckpointError if there is none, or the index names a shard that is not there.
    """
    index = directory / INDEX_FILE
    if index.exists():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            places = {name: directory / file for name, file in sorted(weight_map.items())}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not a safetensors index: {error!r}") from None
        files: dict[Path, list[str] | None] = {}
        for name, path in places.items():
            names = files.setdefault(path, [])
            assert names is not None
            names.append(name)
        if absent := sorted(path.name for path in files if not path.exists()):
            raise CheckpointError(f"{index}: shard {_some(absent)} is not in {directory}")
        return files
    found = sorted(directory.glob("model*.safetensors"))
    if not found:
        others = sorted(path.name for path in directory.glob("*.bin"))
        hint = f"; {_some(others)} is a pickle, convert it first" if others else ""
        raise CheckpointError(f"{directory}: no model*.safetensors file{hint}")
    return dict.fromkeys(found)


def check_file(
    path: Path, names: list[str] | None, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return the names to read of one file, checked against the model by its header alone.

    Raises: CheckpointError naming file and tensor.
    """
    with open_tensors(path) as file:
        stored = set(file.keys())
        # Multi-token prediction heads are no part of this model.
        wanted = sorted(n for n in names or stored if not n.startswith("mtp."))
        if absent := sorted(set(wanted) - stored):
            raise CheckpointError(f"{path}: {_some(absent)} is in the index but not in it")
        if extra := sorted(set(wanted) - shapes.keys()):
            raise CheckpointError(
                f"{path}: tensor {_some(extra)} has no place in the model that config.json "
                "describes"
            )
        for name in wanted:
            stored_as = file.get_slice(name)
            shape = tuple(stored_as.get_shape())
            if shape != shapes[name]:
                raise CheckpointError(
                    f"{path}: tensor {name} has shape {shape}, config.json asks for {shapes[name]}"
                )
            if (dtype := stored_as.get_dtype()) not in DTYPES:
                raise CheckpointError(
                    f"{path}: tensor {name} is stored as {dtype}; plait reads {', '.join(DTYPES)}, "
                    "so take the checkpoint that is not quantised"
                )
        return wanted


def check_complete(
    directory: Path, found: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that every tensor of the model was found.

    Raises: CheckpointError naming what is missing.
    """
    if missing := sorted(shapes.keys() - set(found)):
        raise CheckpointError(
            f"{directory}: {_some(missing)} of shape {shapes[missing[0]]} not found in any "
            "safetensors file; the checkpoint is incomplete or its config.json is another model's"
        )


@contextmanager
def open_tensors(path: Path, device: Device = None) -> Iterator[Any]:
    """Open a safetensors file, memory-mapped.

    Raises: CheckpointError if it cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device=str(device or "cpu")) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None


def cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return the tensor in `dtype`, if given; decays are never narrowed."""
    if dtype is None:
        return tensor
    if name.rpartition(".")[2] in DECAY_PARAMETERS:
        dtype = torch.promote_types(tensor.dtype, dtype)
    return tensor.to(dtype)


def _write_weights(
    num_bytes: Mapping[str, int],
    read: Callable[[str], Tensor],
    directory: Path,
    max_shard_bytes: int,
) -> None:
    shards = list(_split_shards(num_bytes, max_shard_bytes))
    if len(shards) == 1:
        _write_shard(read, shards[0], directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(read, names, directory / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(num_bytes.values())
    _write_json(
        directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def _split_shards(num_bytes: Mapping[str, int], max_shard_bytes: int) -> Iterator[list[str]]:
    """Yield names in order, each list within the limit unless one tensor alone exceeds it."""
    names: list[str] = []
    size = 0
    for name, nbytes in num_bytes.items():
        if names and size + nbytes > max_shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += nbytes
    yield names


def _write_shard(read: Callable[[str], Tensor], names: list[str], path: Path) -> None:
    # One shard at a time leaves the device, so the host never holds the whole model.
    shard = {name: read(name).detach().cpu().contiguous() for name in names}
    with disk_errors(path):
        save_file(shard, path, metadata={"format": "pt"})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _generation_config(spec: ModelSpec) -> dict[str, object]:
    # The pad token of this family's chat template is also the one that ends a turn.
    ends = sorted({spec.eos_token_id, spec.pad_token_id})
    return {
        "bos_token_id": spec.bos_token_id,
        "do_sample": True,
        "eos_token_id": ends,
        "pad_token_id": spec.pad_token_id,
    }


def _model_card(spec: ModelSpec) -> str:
    facts = "\n".join(f"| {row.label} | {row.value} |" for row in describe(spec))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [nemotron_h, mamba2, hybrid]
---

# Hybrid Mamba-2 / attention language model

| | |
|---|---|
{facts}

Written by plait. Load it with `plait.load("DIRECTORY")` or with
`transformers.AutoModelForCausalLM.from_pretrained("DIRECTORY")`.
"""


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=["*.safetensors", "*.json", "*.jinja"])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"{hub_id}: no such directory, and the hub did not give it: {error}"
        ) from None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return names[0] + more
