"""Language models for rooms that know no endpoints: by role, as functions of prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.core.endpoint import EndpointSettings
from plait.data.steps import Ask as AskFunction

# Most tokens of an answer: a cleaned chunk is as long as the chunk; a label or a verdict has a
# reason before it, and what a thinking model thinks.
_MAX_TOKENS = {"clean": 8_000, "label": 2_000, "judge": 2_000}


def open_asks(endpoints: Mapping[Any, EndpointSettings], cache: Path) -> dict[str, AskFunction]:
    """Return a function for each role; all keep their answers in one file under `cache`.

    Raises: ConfigError if an endpoint's key is not set.
    """
    if not endpoints:
        return {}
    from plait.synth.ask import Ask

    for settings in endpoints.values():
        settings.api_key()
    store = cache / "replies.sqlite"
    return {
        role: Ask(settings, store, role, max_tokens=_MAX_TOKENS[role])
        for role, settings in endpoints.items()
    }
