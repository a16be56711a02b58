"""`plait compress`: a child of a model that fits a memory budget; or a list of all that would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from plait.cli import compress_stage
from plait.cli.info import spec_of
from plait.cli.run import Stage, run_stage
from plait.compress.cut import CUT_FILE, Cut
from plait.compress.memory import Workload, memory
from plait.compress.prune import prune_directory
from plait.compress.scores import Scores
from plait.compress.search import Candidate, Grid, candidates, edge, stand_in_depths
from plait.compress.stage import CompressSettings
from plait.compress.throughput import Hardware, throughput
from plait.core.config import read_toml
from plait.core.errors import ConfigError
from plait.core.recipe import StageFile, apply_override
from plait.core.run_folder import check_free, model_directory
from plait.core.sizes import GIB, format_bytes, parse_bytes
from plait.model.count import ServingBytes
from plait.model.hf_config import read_spec
from plait.model.spec import PRESETS, ModelSpec


def settings_of(
    file: Path | None, given: dict[str, Any], overrides: Sequence[str] = ()
) -> CompressSettings:
    """Return the stage's settings: a TOML file's, with what the command line gives on top.

    A key of `given` may be `table.key`; None is not given. `overrides` are `table.key=value`.
    Raises: ConfigError for an unknown key or a value that is not allowed.
    """
    table = read_toml(file) if file else {}
    stage = StageFile(file or Path("plait compress"), "compress", "compress", "compress", {}, table)
    options = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    for override in [*options, *overrides]:
        apply_override(f"compress.{override}", [stage])
    if "memory" not in table:
        raise ConfigError("how much may it take to serve the child? Give --memory, as 19.66GiB")
    return CompressSettings.parse(table, str(stage.path))


def dry_run(name: str, settings: CompressSettings, num_shown: int) -> None:
    """Print what fits, term by term, from the config of a model or a preset's name alone."""
    parent, budget = spec_of(name), parse_bytes(settings.memory)
    terms = memory(parent, settings.workload)
    verdict = "fits already" if terms.total <= budget else "does not fit"
    work = settings.workload
    typer.echo(
        f"budget {format_bytes(budget)} at {work.context_tokens:,} tokens, batch {work.batch}; "
        f"weights {work.dtype}, KV {work.kv_dtype}, SSM state {work.ssm_dtype}"
    )
    typer.echo(f"parent {name}: {parent.num_parameters:,} parameters, {verdict}")
    typer.echo(f"  {terms.describe()}")
    depths = stand_in_depths(parent, Grid.of(settings.ranges, parent))
    found = candidates(parent, depths, settings.ranges, work, budget)
    on_edge = edge(found, parent, settings.ranges)
    typer.echo(
        f"{len(found):,} children fit, {len(on_edge):,} of them could not grow by a step on any "
        "axis; how many layers of each kind go is free here, scores decide which"
    )
    shown = [*(on_edge if num_shown else found)][: num_shown or None]
    named = [each for each in found if each not in shown and _preset_of(each.spec)]
    _table([*named, *shown], settings.hardware, work)
    if num_shown and len(shown) < len(found):
        typer.echo(f"{len(found) - len(shown) - len(named):,} more; --show 0 lists all that fit")


_COLUMNS = ("layers M+*+-", "hidden", "ffn", "heads", "parameters")


def _table(rows: Sequence[Candidate], hardware: Hardware, workload: Workload) -> None:
    terms = [*ServingBytes._fields, "total"]
    header = "".join(f"{name:>14}" for name in _COLUMNS)
    header += "".join(f"{name:>12}" for name in terms)
    typer.echo(f"{header}  tokens/s on {hardware.name} (ceiling, batch)")
    for each in rows:
        shape, (mamba, attention, feed_forward) = each.shape, each.kinds
        cells = (
            f"{each.spec.num_layers} = {mamba}+{attention}+{feed_forward}",
            f"{shape.hidden_size:,}",
            f"{shape.intermediate_size:,}",
            f"{shape.mamba_num_heads} x {shape.mamba_head_dim}",
            f"{each.spec.num_parameters:,}",
        )
        sizes = [*each.memory, each.memory.total]
        speed = throughput(each.spec, hardware, workload)
        preset = _preset_of(each.spec)
        typer.echo(
            "".join(f"{cell:>14}" for cell in cells)
            + "".join(f"{_gib(size):>12}" for size in sizes)
            + f"  {speed.tokens_per_s:,.0f} ({speed.batch})"
            + (f"  <- {preset}" if preset else "")
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3f} GiB" if num_bytes >= GIB / 100 else format_bytes(num_bytes)


def _preset_of(spec: ModelSpec) -> str | None:
    """Return the preset that costs the same: as many layers of each kind, the same widths."""
    for name in PRESETS:
        preset = ModelSpec.preset(name)
        same = sorted(preset.pattern) == sorted(spec.pattern)
        if same and preset.model_copy(update={"pattern": spec.pattern}) == spec:
            return name
    return None


def run(
    name: str, settings: CompressSettings, text: dict[str, Path | None], out: Path | None
) -> None:
    """Search, cut and write; the same command goes on where it was interrupted.

    Raises: ConfigError for an output folder that holds something else, a preset in place of
    weights, or no text; and what the stage raises.
    """
    if out is None:
        raise ConfigError("where to? Give --out DIR, a new folder, or --dry-run to only list")
    if name in PRESETS:
        raise ConfigError(
            f"{name} is a preset, a shape without weights: give a model directory or hub id, or "
            "add --dry-run"
        )
    given = {role: path for role, path in text.items() if path is not None}
    for role, path in given.items():
        if not path.exists():
            raise ConfigError(f"--{role} {path}: does not exist")
    if not given:
        raise ConfigError(
            "scores need text: --conversations FILE.jsonl, --documents FILE.jsonl or a curation's "
            "folder, or --blend FOLDER"
        )
    check_free(out)
    inputs = {"model": str(_directory(name))} | {role: str(path) for role, path in given.items()}
    out = out.resolve()
    file = StageFile(Path("plait compress"), out.name, "compress", "compress", inputs, {})
    run_stage(Stage(file, settings, compress_stage), out.parent, {}, keep=True)
    _finish(out)


def cut_alike(name: str, like: Path, out: Path | None) -> None:
    """Cut another checkpoint of the same shape, as an aligned one, as an earlier child was cut.

    What was measured on that child's parent also corrects the norms.
    Raises: ConfigError for an `out` that is not empty or a model of another shape; DataError if
    `like` is no finished search.
    """
    if out is None:
        raise ConfigError("where to? Give --out DIR, a new folder")
    cut, scores = Cut.read(like / "model" / CUT_FILE), Scores.read(like / "scores")
    directory = _directory(name)
    scores.check_shape(read_spec(directory))
    prune_directory(directory, cut, out / "model", scores.corrections(cut))
    typer.echo(f"child:  {out / 'model'}, cut as {like / 'model'}")


def _directory(name: str) -> Path:
    from plait.model.hf import local_directory

    return local_directory(model_directory(name) if Path(name).exists() else name)


def _finish(out: Path) -> None:
    from plait.eval.report import write_stage_report

    typer.echo(f"child:  {out / 'model'}")
    typer.echo(f"report: {write_stage_report(out)}")
    typer.echo(f"next:   plait info {out}")
