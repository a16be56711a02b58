"""`plait export`: does a model directory load elsewhere, and how is it served by a fleet?

Checked are the things other engines trip over: the spelling of the config, tensors that are
missing, a tokenizer that does not belong to the model, a chat template that renders otherwise, and,
where transformers is installed and the model is small enough to load twice, the logits. Serving on
many machines is vLLM's work; what is printed starts it.
"""

import contextlib
import importlib.util
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from plait.core.errors import CheckpointError
from plait.core.run_folder import model_directory
from plait.data.tokenizer import Tokenizer
from plait.model.hf import load, local_directory
from plait.model.hf_config import CONFIG_FILE, config_from_spec, read_spec
from plait.model.lm import HybridLM

# What vLLM, llama.cpp's converter and transformers need in exactly this spelling.
REQUIRED_KEYS = (
    "architectures",
    "model_type",
    "hybrid_override_pattern",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "mamba_num_heads",
    "mamba_head_dim",
    "ssm_state_size",
    "n_groups",
    "conv_kernel",
    "vocab_size",
)
MAX_LOGIT_ERROR = 1e-3
_COMPARED_UP_TO_PARAMETERS = 2_000_000_000
_COMPARED_TOKENS = 150
_CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
]


def export(source: str) -> None:
    """Check a model directory, run folder or hub id and print the command that serves it in vLLM.

    Raises: CheckpointError or DataError naming what would not load elsewhere.
    """
    directory = local_directory(model_directory(source))
    console = Console(highlight=False, soft_wrap=True)
    for line in check(directory):
        console.print(f"[green]ok[/]  {escape(line)}")
    console.print("\nServe it with vLLM:\n")
    command = vllm_command(directory, read_spec(directory).max_position_embeddings)
    console.print(command, markup=False)
    console.print(
        "\nNo remote code is needed. States stay float32: narrower ones lose accuracy (vllm#22913)."
        "\nThe tool parser is a file of nvidia/NVIDIA-Nemotron-Nano-9B-v2 on the hub; vLLM has "
        "none built in for this form (vllm#42065).",
        style="dim",
    )


def check(directory: Path) -> Iterator[str]:
    """Yield what holds, one sentence each.

    Raises: CheckpointError or DataError naming what does not.
    """
    _check_config(directory)
    yield f"{CONFIG_FILE} is in the hub's spelling"
    model = load(directory)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    num_tensors = sum(1 for _ in model.parameters())
    yield f"{num_tensors} tensors, {model.spec.num_parameters:,} parameters, {', '.join(dtypes)}"
    tokenizer = Tokenizer.from_directory(directory)
    if tokenizer.vocab_size > model.spec.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} ids, the model "
            f"{model.spec.vocab_size}: they do not belong together"
        )
    yield f"the tokenizer's {tokenizer.vocab_size} ids fit the model"
    if tokenizer.chat_template is None:
        yield "no chat template: a base model, to be served for plain completions"
    else:
        tokenizer.render(_CONVERSATION)
        yield "the chat template renders"
    if importlib.util.find_spec("transformers") is None:
        yield "transformers is not installed: logits were not compared"
        return
    _check_foreign_tokenizer(directory, tokenizer)
    yield "transformers' tokenizer gives the same ids"
    if model.spec.num_parameters > _COMPARED_UP_TO_PARAMETERS:
        yield "too large to load twice: logits were not compared"
        return
    yield f"transformers' logits differ by {_check_foreign_logits(directory, model):.1e} at most"


def vllm_command(directory: Path, max_context: int) -> str:
    """Return the shell command that serves the directory in vLLM."""
    options = [
        ["--mamba_ssm_cache_dtype", "float32"],
        ["--max-model-len", str(max_context)],
        ["--enable-auto-tool-choice"],
        ["--tool-parser-plugin", "nemotron_toolcall_parser_streaming.py"],
        ["--tool-call-parser", "nemotron_json"],
    ]
    lines = [f"vllm serve {shlex.quote(str(directory.resolve()))}", *map(shlex.join, options)]
    return " \\\n    ".join(lines)


def _check_config(directory: Path) -> None:
    spec = read_spec(directory)
    file = directory / CONFIG_FILE
    found = json.loads(file.read_text(encoding="utf-8"))
    wanted = config_from_spec(spec, found.get("torch_dtype") or found.get("dtype") or "bfloat16")
    wrong = [key for key in REQUIRED_KEYS if found.get(key) != wanted[key]]
    if wrong:
        raise CheckpointError(
            f"{file}: {', '.join(wrong)} missing or spelled in a way that older engines do not "
            "read; `plait.save(plait.load(directory), new_directory)` writes the common spelling"
        )


def _check_foreign_tokenizer(directory: Path, ours: Tokenizer) -> None:
    from transformers import AutoTokenizer

    with _quiet():
        theirs: Any = AutoTokenizer.from_pretrained(directory)
    text = "A line, 12.5 %\n\tüñí <think>"
    pairs = [(ours.encode(text), theirs.encode(text, add_special_tokens=False))]
    if ours.chat_template is not None:
        rendered = theirs.apply_chat_template(
            _CONVERSATION, add_generation_prompt=True, tokenize=False
        )
        foreign = theirs.encode(rendered, add_special_tokens=False)
        pairs.append((ours.encode_conversation(_CONVERSATION), foreign))
    if any(mine != other for mine, other in pairs):
        raise CheckpointError(
            f"{directory}: transformers reads tokenizer or chat template differently; compare "
            "tokenizer_config.json with one that plait writes"
        )


def _check_foreign_logits(directory: Path, model: HybridLM) -> float:
    from transformers import AutoModelForCausalLM

    with _quiet():
        theirs: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for layer in theirs.model.layers:
        if hasattr(layer.mixer, "time_step_limit"):
            # transformers clamps at time_step_min instead of the configured limit (#48989).
            layer.mixer.time_step_limit = tuple(theirs.config.time_step_limit)
    tokens = torch.randint(
        model.spec.vocab_size, (1, _COMPARED_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        want = theirs(tokens).logits
        error = float((model.float()(tokens) - want).abs().max() / want.abs().max())
    if not error <= MAX_LOGIT_ERROR:
        raise CheckpointError(
            f"{directory}: transformers' logits differ by {error:.1e} of the largest; allowed "
            f"{MAX_LOGIT_ERROR}"
        )
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars out of the report."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
