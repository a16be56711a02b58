"""Recipes: folders of numbered TOML files, one stage each, run in the order of their numbers.

    recipes/tiny/04_pretrain.toml
        stage = "pretrain"          # the kind of stage
        [inputs]
        blend = "blend"             # the finished folder of stage 03_blend, under the role `blend`
        ...                         # everything else: the settings of that kind

A stage is called by its file's name without the number (`pretrain`). An input may also be a path
(anything with a slash), so that a recipe can start from a folder made elsewhere. Where a kind of
stage says so, a role takes a list, `documents = ["curate", "dialogues"]`: the stage gets the first
under `documents` and each other one under `documents.` and its name.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from plait.core.config import nearest, read_toml
from plait.core.errors import ConfigError

_FILE_NAME = re.compile(r"(\d+)_([a-z0-9_]+)\.toml")


class StageFile(NamedTuple):
    """One stage of a recipe as its file says it."""

    path: Path
    name: str
    """With the number: `04_pretrain`; also the name of its run folder."""
    key: str
    """Without the number: `pretrain`; what inputs and overrides call it."""
    kind: str
    inputs: dict[str, str]
    """Role to the key of an earlier stage, or to a path."""
    table: dict[str, Any]
    """Settings, not yet checked."""


class Recipe(NamedTuple):
    """A folder of stages in running order."""

    name: str
    stages: list[StageFile]


def read_recipe(directory: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe folder and apply `stage.key=value` overrides.

    Raises: ConfigError for a missing folder, a file that is not `NN_name.toml`, a missing `stage`,
    an input that names no earlier stage, or an override that names no stage.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such recipe folder")
    files = sorted(directory.glob("*.toml"), key=_place)
    if not files:
        raise ConfigError(f"{directory}: holds no NN_stage.toml file")
    stages: list[StageFile] = []
    for path in files:
        stages.append(_read_stage(path, [stage.key for stage in stages]))
    for override in overrides:
        apply_override(override, stages)
    return Recipe(directory.resolve().name, stages)


def _place(path: Path) -> tuple[int, str]:
    """Order 2_x before 10_y."""
    match = _FILE_NAME.fullmatch(path.name)
    return (int(match[1]) if match else 0, path.name)


def _read_stage(path: Path, earlier: list[str]) -> StageFile:
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        raise ConfigError(
            f"{path}: a stage file is named NN_name.toml, for instance 04_pretrain.toml"
        )
    key = match[2]
    if key in earlier:
        raise ConfigError(f"{path}: a second stage called {key!r}; give it another name")
    table = read_toml(path)
    kind, inputs = table.pop("stage", None), table.pop("inputs", {})
    if not isinstance(kind, str):
        raise ConfigError(f'{path}: needs a line such as stage = "pretrain"')
    if not isinstance(inputs, dict):
        raise ConfigError(f"{path}: inputs is a table of role = stage")
    inputs = _one_source_per_role(path, inputs)
    for role, source in inputs.items():
        if "/" not in source and source not in earlier:
            hint = nearest(source, earlier) if earlier else "this is the first stage"
            raise ConfigError(f"{path}: input {role!r} names {source!r}, no earlier stage; {hint}")
    return StageFile(path, path.stem, key, kind, inputs, table)


def _one_source_per_role(path: Path, inputs: dict[str, Any]) -> dict[str, str]:
    """Give every source after the first of a list a role of its own, `role.source`."""
    roles: dict[str, str] = {}
    for role, given in inputs.items():
        sources = given if isinstance(given, list) else [given]
        if not sources or not all(isinstance(source, str) for source in sources):
            raise ConfigError(f"{path}: input {role!r} is {given!r}; give stages or paths")
        if len(set(sources)) < len(sources):
            raise ConfigError(f"{path}: input {role!r} names a source twice: {given!r}")
        roles[role] = sources[0]
        roles |= {f"{role}.{source}": source for source in sources[1:]}
    return roles


def inputs_of(inputs: Mapping[str, Path], role: str) -> list[Path]:
    """Return every source that a stage was given under a role, in the order of the recipe."""
    return [path for name, path in inputs.items() if name.partition(".")[0] == role]


def apply_override(override: str, stages: list[StageFile]) -> None:
    """Apply `stage.key=value` to the table of the stage that it names.

    Raises: ConfigError for a malformed override or one that names no stage.
    """
    left, equals, right = override.partition("=")
    key, *parts = left.strip().split(".")
    if not equals or not parts:
        raise ConfigError(f"--set {override}: write stage.key=value, as in pretrain.seed=7")
    by_key = {stage.key: stage for stage in stages}
    if key not in by_key:
        raise ConfigError(f"--set {override}: no stage {key!r}; {nearest(key, list(by_key))}")
    table = by_key[key].table
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {part!r} is not a table")
    table[parts[-1]] = _toml_value(right.strip())


def _toml_value(text: str) -> Any:
    """Read a value as TOML would; what is not TOML is taken as a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
