"""The stage `sft`: fine-tune a model on conversations.

Reads `model` (a run folder or any model directory with its tokenizer). Conversations come from
generated tasks, from the user's files, from earlier stages `synth` as the input `conversations`,
and, a share of them, from earlier stages `sft` as the input `replay`, so that what those taught is
not forgotten. Writes `model/`, `data/train.jsonl` and, for generated tasks, `data/test.jsonl` with
held-out questions.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from plait.align.batches import Packing, SampleRows
from plait.align.generated import GeneratedTasks
from plait.align.records import Refusals, conversation_messages, read_records
from plait.align.sft import SampleSet, build_samples
from plait.align.traces import TraceSettings, with_shorter_traces
from plait.align.tune import EpochSettings, load_for_tuning, training_metrics, tune
from plait.core.artifact import json_bytes, write_atomic
from plait.core.errors import DataError
from plait.core.progress import track
from plait.core.recipe import inputs_of
from plait.core.run_folder import model_directory
from plait.core.seed import mix_seed
from plait.data.loader import PackedBatch
from plait.data.tokenizer import Tokenizer
from plait.model.lm import HybridLM
from plait.synth.sample import CONVERSATIONS_FILE
from plait.train.fit import session
from plait.train.loop import LossOutput
from plait.train.losses import next_token_loss

LEARNT_FILE = Path("data", "train.jsonl")
"""Every conversation that a stage learns from."""


class SftSettings(EpochSettings, GeneratedTasks):
    """Settings of the stage `sft`; files hold conversations (`messages`, optional `tools`)."""

    packing: Packing = "separate"
    """How the samples of a batch share a row. The report packs its first stage and not its second,
    because that had hurt tool calling; it does not say whether its packed samples saw each other.
    Here they do not, unless "joined" says so; see `batches`."""
    traces: TraceSettings = TraceSettings()
    """What becomes of the traces of conversations that were not generated here; generated tasks
    have shares of their own."""
    replay_share: float = Field(0.1, gt=0, le=1)
    """Share of the conversations of earlier stages, the input `replay`, that is learnt again."""

    def lacks(self, roles: Collection[str]) -> str | None:
        """Ask for data."""
        if self.generates or self.files or {"conversations", "replay"} & set(roles):
            return None
        return (
            "needs data: a list `files`, a table `chains`, `instructions`, `tool_calls` or "
            "`letters`, or an earlier stage as the input `conversations` or `replay`"
        )


def run(settings: SftSettings, inputs: dict[str, Path], out: Path) -> dict[str, float]:
    """Fine-tune `inputs["model"]` and write the model to `out/model`.

    Raises: ConfigError for a file that does not exist; DataError for unusable conversations or
    held-out questions that are also in the training data.
    """
    with session(settings.num_threads):
        model = load_for_tuning(inputs["model"], settings)
        tokenizer = Tokenizer.from_directory(model_directory(inputs["model"]))
        refusals = Refusals(settings.strict)
        data = _prepare(settings, inputs, tokenizer, out, refusals)
        batches = SampleRows(
            data.samples, settings.tokens_per_batch, settings.seed, settings.packing
        )
        schedule = settings.schedule(batches.num_batches)
        source = inputs["model"]
        result = tune(model, batches, rows_loss, settings, schedule, "sft", source, out)
    return training_metrics(result) | {
        "samples": float(len(data.samples)),
        "samples_too_long": float(data.num_too_long),
        "rows_refused": float(len(refusals.reasons)),
    }


def rows_loss(model: HybridLM, rows: Sequence[PackedBatch]) -> LossOutput:
    """Return the sum of the losses of some rows."""
    losses = [next_token_loss(model, row) for row in rows]
    total = torch.stack([loss.total for loss in losses]).sum()
    weight = torch.stack([torch.as_tensor(loss.weight) for loss in losses]).sum()
    return LossOutput(total, weight, num_tokens=sum(loss.num_tokens for loss in losses))


def _prepare(
    settings: SftSettings,
    inputs: Mapping[str, Path],
    tokenizer: Tokenizer,
    out: Path,
    refusals: Refusals,
) -> SampleSet:
    """Tokenise what this run learns from, and write that and what it is tested on."""
    seed = mix_seed(settings.seed, "tasks")
    conversations: list[Mapping[str, Any]] = []
    for record in _given(settings, inputs, refusals):
        with refusals.row():
            conversations.append(
                with_shorter_traces(record, settings.traces, tokenizer, settings.seed)
            )
    conversations += settings.train_conversations(seed)
    questions = list(settings.held_out_questions(seed))
    check_disjoint(conversations, questions)
    if questions:
        _write_jsonl(out / "data" / "test.jsonl", questions)
    shown = track(conversations, "sft data", unit="conversations")
    data = build_samples(shown, tokenizer, settings.tokens_per_batch, refusals)
    refusals.report(out / "data" / "refused.txt")
    if not data.samples:
        raise DataError(
            f"no conversation can be learnt from: {data.num_too_long} samples exceed "
            f"tokens_per_batch = {settings.tokens_per_batch}, {refusals.summary}"
        )
    _write_jsonl(out / LEARNT_FILE, data.conversations)
    return data


def _given(
    settings: SftSettings, inputs: Mapping[str, Path], refusals: Refusals
) -> Iterator[Mapping[str, Any]]:
    """Yield the conversations of files and of earlier stages; of those replayed, a share."""
    made = [source / CONVERSATIONS_FILE for source in inputs_of(inputs, "conversations")]
    yield from read_records([*settings.files, *made], refusals)
    for record in read_records(
        [source / LEARNT_FILE for source in inputs_of(inputs, "replay")], refusals
    ):
        draw = mix_seed(settings.seed, "replay", repr(_spoken(record)))
        if draw / 2**63 < settings.replay_share:
            yield record


def check_disjoint(
    conversations: Iterable[Mapping[str, Any]], questions: Iterable[Mapping[str, Any]]
) -> None:
    """Check that no held-out question is asked in training.

    Raises: DataError naming both records.
    """
    asked = {_user_text(_spoken(record)): record["id"] for record in conversations}
    for question in questions:
        twin = asked.get(_user_text(question["prompt"]))
        if twin is not None:
            raise DataError(
                f"held-out question {question['id']} is also asked in training ({twin})"
            )


def _spoken(record: Mapping[str, Any]) -> Any:
    """Return a record's messages, whichever form it has; None for one that is refused later."""
    try:
        return conversation_messages(record)
    except DataError:
        return None


def _user_text(messages: Any) -> str:
    # What is no message is refused, with file and line, when samples are made.
    listed = messages if isinstance(messages, list) else []
    known = (m for m in listed if isinstance(m, Mapping))
    texts = (str(m.get("content")) for m in known if m.get("role") in ("user", "system"))
    return " ".join(" ".join(texts).lower().split())


def _write_jsonl(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    # Tables may hold dates and the like, which no stage reads.
    lines = (json.dumps(record, ensure_ascii=False, default=str) for record in records)
    write_atomic(file, json_bytes("".join(f"{line}\n" for line in lines)))
