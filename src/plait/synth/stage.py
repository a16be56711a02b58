"""The stage `synth`: one generator, its endpoints, what it reads and what it writes.

    stage = "synth"
    generator = "dialogue"
    category = "maths"
    categories = ["maths"]
    endpoints = { default = { url = "http://127.0.0.1:8000/v1", model = "phi-4" } }
    [inputs]
    documents = "curate"

Each generator is a module with a settings class and `generate(settings, sources, pipeline)`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from plait.core.artifact import write_json
from plait.core.config import Settings, nearest
from plait.core.errors import ConfigError, DataError
from plait.synth import (
    academic_qa,
    code_qa,
    dialogue,
    diverse_qa,
    long_document_qa,
    reasoning,
    rephrase,
    stem,
    tool_calls,
    translate,
)
from plait.synth.client import Client
from plait.synth.pipeline import Pipeline
from plait.synth.replies import ReplyStore
from plait.synth.role import Role
from plait.synth.sample import SampleWriter
from plait.synth.settings import Sources, SynthSettings

FUNNEL_FILE = "funnel.json"
REPLIES_FILE = "replies.sqlite"


class Generator(NamedTuple):
    """A generator's settings and the function that writes."""

    settings: type[SynthSettings]
    generate: Callable[[Any, Sources, Pipeline], Awaitable[None]]


GENERATORS = {
    "stem": Generator(stem.StemSettings, stem.generate),
    "dialogue": Generator(dialogue.DialogueSettings, dialogue.generate),
    "diverse_qa": Generator(diverse_qa.DiverseQaSettings, diverse_qa.generate),
    "translate": Generator(translate.TranslateSettings, translate.generate),
    "code_qa": Generator(code_qa.CodeQaSettings, code_qa.generate),
    "academic_qa": Generator(academic_qa.AcademicQaSettings, academic_qa.generate),
    "reasoning": Generator(reasoning.ReasoningSettings, reasoning.generate),
    "tool_calls": Generator(tool_calls.ToolCallSettings, tool_calls.generate),
    "rephrase": Generator(rephrase.RephraseSettings, rephrase.generate),
    "long_document_qa": Generator(
        long_document_qa.LongDocumentQaSettings, long_document_qa.generate
    ),
}


class AnySynthSettings(Settings):
    """The settings class of the stage: of whichever generator a table names."""

    @classmethod
    def parse(cls, table: Mapping[str, Any], source: str) -> SynthSettings:  # pyright: ignore
        """Build the named generator's settings. Raises: ConfigError for what is wrong in them."""
        name = table.get("generator")
        if not isinstance(name, str) or name not in GENERATORS:
            hint = nearest(str(name or ""), list(GENERATORS))
            raise ConfigError(f"{source}: key 'generator': no generator {name!r}; {hint}")
        return GENERATORS[name].settings.parse(table, source)


def write(settings: SynthSettings, sources: Sources, out: Path) -> dict[str, float]:
    """Run the generator that the settings name; leave documents and conversations in `out`.

    Raises: EndpointError if an endpoint cannot be used, after which the same call goes on where
    this one stopped; DataError if nothing was kept.
    """
    store = ReplyStore(sources.cache / REPLIES_FILE)
    try:
        table = asyncio.run(_write(settings, sources, store, out))
    finally:
        store.close()
    write_json(out / FUNNEL_FILE, table)
    return _metrics(table)


async def _write(
    settings: SynthSettings, sources: Sources, store: ReplyStore, out: Path
) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        roles: dict[str, Role] = {}
        for name in settings.roles:
            client = Client(name, settings.endpoint(name), store, settings.budget_tokens)
            roles[name] = Role(await stack.enter_async_context(client), settings.num_asks)
        with SampleWriter(
            out, settings.category, settings.validation_share, settings.seed
        ) as writer:
            pipeline = Pipeline(roles, store, writer)
            await GENERATORS[settings.generator].generate(settings, sources, pipeline)
            table = pipeline.table()
            if not writer.num_documents and not writer.num_conversations:
                raise DataError(f"{settings.generator}: nothing was kept: {describe(table)}")
    return table


def describe(table: Mapping[str, Any]) -> str:
    """Say in a few words what became of the items of each step."""
    steps = []
    for name, step in table["steps"].items():
        drops = "".join(f", {count} {reason}" for reason, count in step["dropped"].items())
        steps.append(f"{name}: {step['items_in']} in, {step['items_kept']} kept{drops}")
    return "; ".join(steps) or "there was nothing to write from"


def _metrics(table: Mapping[str, Any]) -> dict[str, float]:
    steps = table["steps"].values()
    return {
        "items_in": float(sum(step["items_in"] for step in steps)),
        "items_dropped": float(sum(sum(step["dropped"].values()) for step in steps)),
        **{
            key: float(table[key])
            for key in ("documents", "conversations", "prompt_tokens", "answer_tokens", "cost")
        },
    }
