"""What is asked in reinforcement learning: the user's prompts, generated questions, tool tasks."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.align.records import Record, Refusals, prompt_messages, read_records
from plait.align.rollout import AskSettings, Prompt
from plait.align.workbench.episode import Episode
from plait.align.workbench.tasks import Split, Task
from plait.core.errors import DataError, RequestError
from plait.core.progress import track
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.data.tokenizer import Tokenizer
from plait.grade.verifiers import verifier_place
from plait.model.hf_config import read_spec


def gather_prompts(
    split: Split,
    settings: AskSettings,
    files: Sequence[str],
    seed: int,
    source: Path,
    refusals: Refusals,
    *,
    verified: bool = True,
) -> list[Prompt]:
    """Return the prompts of some files, and those of a split that the settings ask to be generated,
    as far as the model at `source` has room for them.

    Without `verified` a reward model judges what no environment does.
    Raises: DataError for a row that cannot be used, unless `refusals` collects it.
    """
    seed, directory = mix_seed(seed, "tasks"), model_directory(source)
    tokenizer = Tokenizer.from_directory(directory)
    max_tokens = settings.room(read_spec(directory)).prompt_tokens
    records: list[Mapping[str, Any]] = [*read_records(files, refusals)]
    make = settings.train_questions if split == "train" else settings.held_out_questions
    records += make(seed)
    shown = track(records, f"{split} prompts", unit="prompts")
    prompts = build_prompts(shown, tokenizer, max_tokens, refusals, verified)
    if settings.workbench is not None:
        tasks = settings.workbench.tasks(seed, split)
        prompts += tool_prompts(tasks, tokenizer, max_tokens, refusals)
    if not prompts and split == "train":
        raise DataError(f"no prompt to learn from; {refusals.summary}")
    return prompts


def check_apart(learnt: Iterable[Prompt], held_out: Iterable[Prompt]) -> None:
    """Check that nothing held out is learnt from.

    Raises: DataError naming both prompts.
    """
    known = {prompt.identity: prompt.id for prompt in learnt}
    for prompt in held_out:
        if prompt.identity in known:
            raise DataError(
                f"held-out prompt {prompt.id} is also learnt from ({known[prompt.identity]})"
            )


def build_prompts(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    max_tokens: int,
    refusals: Refusals,
    verified: bool = True,
) -> list[Prompt]:
    """Read prompts (`prompt, verifier, reference`) and check that each can be asked.

    Raises: DataError for a row that cannot be used, unless `refusals` collects it.
    """
    prompts: list[Prompt] = []
    for record in records:
        with refusals.row():
            prompt = _prompt(record, verified)
            _check_length(prompt, tokenizer, max_tokens)
            prompts.append(prompt)
    return prompts


def tool_prompts(
    tasks: Iterable[Task], tokenizer: Tokenizer, max_tokens: int, refusals: Refusals
) -> list[Prompt]:
    """Return workbench tasks as prompts whose attempts act on an office of their own.

    Raises: DataError for one that is too long, unless `refusals` collects it.
    """
    prompts: list[Prompt] = []
    for task in tasks:
        with refusals.row():
            prompt = Prompt(
                task.id,
                task.messages,
                task.tools,
                "",
                "",
                lambda task=task: Episode(task.office, task.gold),
            )
            _check_length(prompt, tokenizer, max_tokens)
            prompts.append(prompt)
    return prompts


def _prompt(record: Record, verified: bool) -> Prompt:
    name = str(record.get("id", "a record"))
    messages = prompt_messages(record)
    verifier, reference = str(record.get("verifier", "")), record.get("reference", "")
    if verified:
        try:
            verifier_place(verifier)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        if record.get("reference") is None:
            raise DataError(f"{name}: needs a `reference`, which the verifier compares with")
    if verified and not isinstance(reference, str):
        reference = json.dumps(reference, default=str)  # parquet has decimals and dates
    return Prompt(name, messages, record.get("tools"), verifier, str(reference))


def _check_length(prompt: Prompt, tokenizer: Tokenizer, max_tokens: int) -> None:
    try:
        num_tokens = len(tokenizer.encode_conversation(prompt.messages, tools=prompt.tools))
    except RequestError as error:
        raise DataError(f"{prompt.id}: {error}") from None
    if num_tokens > max_tokens:
        raise DataError(
            f"{prompt.id}: the prompt has {num_tokens} tokens, more than the {max_tokens} that "
            "max_prompt_tokens and the model's context allow"
        )
