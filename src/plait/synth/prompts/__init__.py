"""The prompts, one Jinja file each: ours, and data rather than code."""

import functools
import json
import tomllib
from importlib import resources
from typing import Any

import jinja2


def render(name: str, **values: Any) -> str:
    """Return a prompt with its values filled in; one that is missing is an error."""
    return _environment().get_template(f"{name}.jinja").render(**values)


@functools.cache
def table(name: str) -> dict[str, str]:
    """Return a table of texts by name, such as the styles of dialogues."""
    return tomllib.loads(
        resources.files("plait.synth.prompts").joinpath(f"{name}.toml").read_text("utf-8")
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plait.synth", "prompts"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Jinja's own filter escapes for HTML.
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    return environment
