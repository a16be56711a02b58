"""`plait sft | pairs | dpo | reward | grpo | merge`: a stage alone, on a user's model and data.

Each verb is the stage of the same name as `plait run` runs it, in a folder of the user's choice: it
is skipped when finished and unchanged, resumed when interrupted, and has the same settings.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="Model directory, run folder or hub id.")]
Data = Annotated[
    list[str] | None,
    typer.Argument(help="JSONL or parquet files; none where --set asks for generated tasks."),
]
Out = Annotated[Path, typer.Option(help="Where the run folder goes; the model is in OUT/model.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one key of the stage."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")]
Judge = Annotated[str | None, typer.Option(help="Reward model that judges instead of verifiers.")]


def sft(
    model: Model, out: Out, data: Data = None, overrides: Overrides = None, strict: Strict = False
) -> None:
    """Fine-tune on conversations: {"messages": [...], "tools": [...]}."""
    run_alone("sft", {"model": model}, table_of(data, strict), out, overrides)


def pairs(
    model: Model,
    out: Out,
    data: Data = None,
    overrides: Overrides = None,
    strict: Strict = False,
    reward_model: Judge = None,
) -> None:
    """Pair a model's better with its worse answers, for on-policy DPO: OUT/pairs.jsonl."""
    run_alone("pairs", judged(model, reward_model), table_of(data, strict), out, overrides)


def dpo(
    model: Model, out: Out, data: Data = None, overrides: Overrides = None, strict: Strict = False
) -> None:
    """Learn which answer is preferred: {"prompt": ..., "chosen": ..., "rejected": ...}.

    --set rounds.workbench.num_train=500 makes pairs of the model's own attempts at tool tasks.
    """
    run_alone("dpo", {"model": model}, table_of(data, strict), out, overrides)


def reward(
    model: Model, out: Out, data: Data = None, overrides: Overrides = None, strict: Strict = False
) -> None:
    """Train a reward model on {"prompt": ..., "chosen": ..., "rejected": ...}."""
    run_alone("reward", {"model": model}, table_of(data, strict), out, overrides)


def grpo(
    model: Model,
    out: Out,
    data: Data = None,
    overrides: Overrides = None,
    strict: Strict = False,
    reward_model: Judge = None,
) -> None:
    """Reinforce rewarded answers to {"prompt": ..., "verifier": ..., "reference": ...}.

    --set workbench.num_train=500 rewards attempts at tool tasks that end as they should.
    """
    run_alone("grpo", judged(model, reward_model), table_of(data, strict), out, overrides)


def merge(
    model: Model,
    other: Annotated[str, typer.Argument(help="The second model, of the same family.")],
    out: Out,
    data: Annotated[
        list[str] | None, typer.Option(help="Prompts that choose among several alphas.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Merge two models, (1 - alpha) MODEL + alpha OTHER; --set alphas=[0.25,0.5] sweeps."""
    table = {"tasks": {"prompts": {"files": data}}} if data else {}
    run_alone("merge", {"model": model, "other": other}, table, out, overrides)


VERBS = (sft, pairs, dpo, reward, grpo, merge)


def table_of(data: list[str] | None, strict: bool) -> dict[str, Any]:
    """Return the settings that arguments stand for."""
    return {"files": data or [], "strict": strict}


def judged(model: str, reward_model: str | None) -> dict[str, str]:
    """Return the inputs of a stage that judges answers."""
    return {"model": model} | ({"reward": reward_model} if reward_model else {})


def run_alone(
    kind: str,
    inputs: dict[str, str],
    table: dict[str, Any],
    out: Path,
    overrides: list[str] | None,
) -> None:
    """Run one stage in the folder `out`.

    Raises: ConfigError for wrong settings, missing inputs, or an `out` that holds something else.
    """
    from plait.cli.run import check_one_process, check_stage, run_stage
    from plait.core.recipe import StageFile, apply_override
    from plait.core.run_folder import check_free, read_manifest
    from plait.model.hf import local_directory

    check_one_process()
    out = out.resolve()
    check_free(out)
    sources = {role: str(local_directory(source).resolve()) for role, source in inputs.items()}
    file = StageFile(Path(f"plait {kind}"), out.name, kind, kind, sources, table)
    for override in overrides or []:
        apply_override(f"{kind}.{override}", [file])
    stage = check_stage(file)
    stage.settings.files_read()
    folder = run_stage(stage, out.parent, {})
    for name, value in read_manifest(folder)["metrics"].items():
        typer.echo(f"  {name:<28}{value:,.4g}")
    following = {
        "reward": f"plait grpo MODEL PROMPTS --reward-model {folder} --out DIR",
        "pairs": f"plait dpo {inputs.get('model')} {folder / 'pairs.jsonl'} --out DIR",
        "synth": f"read {folder / 'funnel.json'}; a blend takes the folder among its documents, "
        "plait sft its conversations.jsonl",
    }
    typer.echo(f"next:    {following.get(kind, f'plait chat {folder}')}")
