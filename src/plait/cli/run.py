"""`plait run`: a recipe from first stage to report.

This is where rooms are wired: a stage kind is a module with a settings class and
`run(settings, inputs, out) -> metrics`. Everything is checked before the first stage starts.
"""

import importlib
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer

from plait.core.artifact import write_json
from plait.core.config import Settings, nearest
from plait.core.errors import ConfigError
from plait.core.memory_peak import MemoryPeak
from plait.core.recipe import Recipe, StageFile, read_recipe
from plait.core.run_folder import (
    exclusive,
    finish_run_folder,
    open_run_folder,
    read_manifest,
)


class StageKind(NamedTuple):
    """Where a kind of stage is, and which inputs it takes."""

    module: str
    settings: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    many: tuple[str, ...] = ()
    """Of these roles, those that take a list of sources."""


TEXT_ROLES = ("conversations", "documents", "blend")

STAGES = {
    "curate": StageKind(
        "plait.cli.curate_stage",
        "CurateSettings",
        optional=("student", "benchmarks"),
        many=("benchmarks",),
    ),
    "student": StageKind(
        "plait.cli.student_stage",
        "StudentSettings",
        optional=("documents",),
        many=("documents",),
    ),
    "decontaminate": StageKind(
        "plait.cli.decontaminate_stage",
        "DecontaminateStageSettings",
        optional=("documents", "benchmarks"),
        many=("documents", "benchmarks"),
    ),
    "tokenizer": StageKind("plait.data.train_tokenizer", "TokenizerSettings", ("documents",)),
    "blend": StageKind(
        "plait.data.blend", "BlendSettings", ("documents", "tokenizer"), many=("documents",)
    ),
    "synth": StageKind(
        "plait.cli.synth_stage",
        "AnySynthSettings",
        optional=("documents", "tokenizer"),
        many=("documents",),
    ),
    "pretrain": StageKind(
        "plait.train.pretrain", "PretrainSettings", ("blend", "tokenizer"), ("model",)
    ),
    "sft": StageKind(
        "plait.align.sft_stage",
        "SftSettings",
        ("model",),
        ("conversations", "replay"),
        ("conversations", "replay"),
    ),
    "compress": StageKind("plait.cli.compress_stage", "CompressSettings", ("model",), TEXT_ROLES),
    "distill": StageKind(
        "plait.cli.distill",
        "DistillSettings",
        ("student", "teacher"),
        TEXT_ROLES,
    ),
    "pairs": StageKind("plait.align.pairs_stage", "PairsSettings", ("model",), ("reward",)),
    "dpo": StageKind("plait.align.dpo_stage", "DpoSettings", ("model",), ("pairs", "reward")),
    "reward": StageKind("plait.align.reward_stage", "RewardSettings", ("model",), ("pairs",)),
    "grpo": StageKind("plait.align.grpo_stage", "GrpoSettings", ("model",), ("reward",)),
    "merge": StageKind("plait.align.merge_stage", "MergeSettings", ("model", "other")),
    "eval": StageKind(
        "plait.eval.stage",
        "EvalSettings",
        ("model",),
        ("questions", "pretrain", "uncut", "panel", "checkpoints"),
        many=("checkpoints",),
    ),
}


class Stage(NamedTuple):
    """A stage file with its settings checked and its module found."""

    file: StageFile
    settings: Settings
    module: Any


def check_recipe(recipe: Recipe) -> list[Stage]:
    """Check every stage's kind, inputs and settings.

    Raises: ConfigError naming file and key or role.
    """
    return [check_stage(file) for file in recipe.stages]


def check_stage(file: StageFile) -> Stage:
    """Check one stage's kind, inputs and settings.

    Raises: ConfigError naming file and key or role.
    """
    if file.kind not in STAGES:
        raise ConfigError(
            f"{file.path}: no stage kind {file.kind!r}; {nearest(file.kind, list(STAGES))}"
        )
    kind = STAGES[file.kind]
    _check_inputs(file, kind)
    module = importlib.import_module(kind.module)
    settings = getattr(module, kind.settings).parse(file.table, str(file.path))
    roles = {role.partition(".")[0] for role in file.inputs}
    if lack := settings.lacks(roles):
        raise ConfigError(f"{file.path}: {lack}")
    return Stage(file, settings, module)


def _check_inputs(file: StageFile, kind: StageKind) -> None:
    allowed = [*kind.required, *kind.optional]
    for role, source in file.inputs.items():
        role, dot, _ = role.partition(".")
        if dot and role not in kind.many:
            raise ConfigError(f"{file.path}: {file.kind} takes one {role!r}, not a list")
        if role not in allowed:
            hint = nearest(role, allowed) if allowed else "it takes none"
            raise ConfigError(f"{file.path}: {file.kind} takes no input {role!r}; {hint}")
        if "/" in source and not Path(source).expanduser().exists():
            raise ConfigError(f"{file.path}: input {role!r}: {source} does not exist")
    for role in kind.required:
        if role not in file.inputs:
            raise ConfigError(
                f"{file.path}: {file.kind} needs the input {role!r}; "
                f'write {role} = "<an earlier stage or a path>" under [inputs]'
            )


def check_one_process() -> None:
    """Check that torchrun did not start several of this command.

    Raises: ConfigError if it did.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "several processes were started, and each would do the whole work; start one without "
            "torchrun (`plait.train` trains sharded over processes, its commands do not yet)"
        )


def run_recipe(directory: Path, out: Path, overrides: Sequence[str], until: str | None) -> None:
    """Run the stages of a recipe folder, then write summary.json and report.html."""
    check_one_process()
    recipe = read_recipe(directory, overrides)
    stages = check_recipe(recipe)
    names = [stage.file.key for stage in stages]
    if until is not None and until not in names:
        raise ConfigError(f"--until {until}: no such stage; {nearest(until, names)}")
    for stage in stages:
        stage.settings.files_read()
    run_directory = out / recipe.name
    with exclusive(run_directory):
        folders: dict[str, Path] = {}
        for stage in stages:
            folders[stage.file.key] = run_stage(stage, run_directory, folders)
            if stage.file.key == until:
                break
        finish(run_directory, recipe)


def finish(run_directory: Path, recipe: Recipe) -> None:
    """Write summary.json and report.html, and say where everything is.

    Both tell of the recipe's stages alone, also of those after `--until` that finished before; not
    of what an earlier version of the recipe left.
    """
    from plait.eval.report import write_report

    folders = {
        stage.key: run_directory / stage.name
        for stage in recipe.stages
        if (run_directory / stage.name / "manifest.json").exists()
    }
    summary = summarise(folders)
    write_json(run_directory / "summary.json", summary)
    page = write_report(run_directory, [stage.name for stage in recipe.stages])
    for line in headlines(summary):
        typer.echo(f"  {line}")
    typer.echo(f"summary: {run_directory / 'summary.json'}")
    typer.echo(f"report:  {page}")
    models = [folder for folder in folders.values() if (folder / "model" / "config.json").exists()]
    if models:
        typer.echo(f"next:    plait chat {models[-1]}")


_HEADLINES = re.compile(
    r"run\..*|eval\w*\.(accuracy\.\w+|well_formed|bits_per_byte\.[\w-]+"
    r"|tool_calls\.exact|instructions\.strict)"
)


def headlines(summary: dict[str, float]) -> list[str]:
    """Return the lines worth a look at the end of a run; the report has the rest."""
    names = [name for name in summary if _HEADLINES.fullmatch(name)]
    width = max(map(len, names), default=0)
    lines = []
    for name in names:
        before = summary.get(name.replace("bits_per_byte.", "bits_per_byte_before."))
        changed = "bits_per_byte." in name and before is not None
        note = f"  (before training {before:.4g})" if changed else ""
        lines.append(f"{name:<{width}}  {summary[name]:,.4g}{note}")
    return lines


def summarise(folders: dict[str, Path]) -> dict[str, float]:
    """Collect finished stages' metrics under `<stage>.<metric>`, and the run's own.

    `run.wall_s` counts each stage's last, finishing run; `run.peak_memory_gib` is the largest
    resident size of the process or one of its children during them.
    """
    summary: dict[str, float] = {}
    wall_s = peak_gib = 0.0
    for key, folder in folders.items():
        manifest = read_manifest(folder)
        wall_s += manifest["wall_s"]
        peak_gib = max(peak_gib, manifest["peak_memory_gib"])
        summary |= {f"{key}.{name}": value for name, value in manifest["metrics"].items()}
    return summary | {"run.wall_s": wall_s, "run.peak_memory_gib": peak_gib}


def run_stage(
    stage: Stage, run_directory: Path, folders: dict[str, Path], *, keep: bool = False
) -> Path:
    """Run a stage in `run_directory`/name unless it is finished there; `folders` holds the stages
    before it by key. Other work in that folder is moved aside, or refused if `keep`.

    Raises: ConfigError if another process works in that folder.
    """
    with exclusive(run_directory / stage.file.name):
        return _run_alone(stage, run_directory, folders, keep)


def _run_alone(stage: Stage, run_directory: Path, folders: dict[str, Path], keep: bool) -> Path:
    file = stage.file
    inputs = {
        role: folders[source] if source in folders else Path(source).expanduser()
        for role, source in file.inputs.items()
    }
    settings = json.loads(stage.settings.model_dump_json())
    files = stage.settings.files_read()
    path = run_directory / file.name
    folder = open_run_folder(path, file.kind, settings, inputs, files, keep=keep)
    if folder.set_aside is not None:
        typer.echo(
            f"{file.name}: settings or inputs changed; earlier folder kept as {folder.set_aside}"
        )
    if folder.state == "finished":
        typer.echo(f"{file.name}: finished before, unchanged")
        return folder.path
    typer.echo(f"{file.name}: {'resuming' if folder.state == 'unfinished' else 'starting'}")
    started, peak = time.monotonic(), MemoryPeak()
    metrics = stage.module.run(stage.settings, inputs, folder.path)
    wall_s = time.monotonic() - started
    facts = {
        "metrics": metrics,
        "wall_s": wall_s,
        "peak_memory_gib": peak.gib(),
        "peak_memory_of": "stage" if peak.is_exact else "process",
    }
    finish_run_folder(folder, facts)
    typer.echo(f"{file.name}: done in {wall_s:,.0f} s -> {folder.path}")
    return folder.path
