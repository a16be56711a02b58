"""The `plait` command: one verb per job, each with its own short file.

Nothing heavy is imported before a verb is chosen, so that `plait --help` answers at once.
"""

import errno
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli import align, synth
from plait.core.errors import ConfigError, PlaitError
from plait.core.process import set_library_defaults

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Nemotron Nano 2 end to end: data, hybrid model, training, alignment, engine.",
)

EXIT_INTERRUPTED = 130

# typer does not export the base of its errors about wrong verbs, options and arguments.
_UsageError: Any = typer.BadParameter.__base__


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe folder, for instance recipes/tiny.")],
    out: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Override one setting."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
) -> None:
    """Run a recipe's stages in order; finished ones are skipped, unfinished ones resume."""
    from plait.cli.run import run_recipe

    run_recipe(recipe, out, overrides or [], until)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Model directory, run folder or hub id.")],
    max_tokens: Annotated[int, typer.Option(help="Most new tokens per answer.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 0.95,
) -> None:
    """Talk to a model in the terminal."""
    from plait.cli.chat import chat as start_chat

    start_chat(model, max_tokens=max_tokens, temperature=temperature, top_p=top_p)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Model directory, run folder or hub id.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    memory: Annotated[
        str | None, typer.Option(help="Memory to plan with, for instance 22GiB.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of prompt and answer.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Requests that run at once; up to 32 if not given.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key clients must send.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    prefix_cache: Annotated[bool, typer.Option(help="Reuse what prompts have in common.")] = True,
) -> None:
    """Serve a model: OpenAI's API, and a chat page."""
    from plait.cli.serve import Address
    from plait.cli.serve import serve as start_server

    start_server(
        model,
        Address(host, port),
        memory=memory,
        context=context,
        max_num_seqs=max_num_seqs,
        api_key_file=api_key_file,
        dtype=dtype,
        prefix_cache=prefix_cache,
    )


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Model directory, run folder or hub id.")],
) -> None:
    """Check that a model loads elsewhere and print the vLLM command that serves it."""
    from plait.cli.export import export as export_model

    export_model(model)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Preset, model directory, run folder or hub id.")],
) -> None:
    """Show a model's shape, parameters and memory, without loading its weights."""
    from plait.cli.info import show

    show(model)


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="Model directory, run folder or hub id.")],
    memory: Annotated[str | None, typer.Option(help="Budget, for instance 19.66GiB.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of the longest sequence.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences of that length at once.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the child.")] = None,
    conversations: Annotated[
        Path | None, typer.Option(help="Text to measure on: JSONL, or a run folder with it.")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option(help="Text to measure on: JSONL, or a curation's folder.")
    ] = None,
    blend: Annotated[Path | None, typer.Option(help="Text to measure on: a blend.")] = None,
    keep_attention: Annotated[
        int | None, typer.Option(help="Fewest attention layers that stay.")
    ] = None,
    align: Annotated[
        int | None, typer.Option(help="What widths are multiples of: 128 for FP8 by blocks.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Candidates that are healed.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="TOML with any setting of the stage `compress`.")
    ] = None,
    overrides: align.Overrides = None,
    like: Annotated[
        Path | None, typer.Option(help="Cut as this finished folder's child was; measure nothing.")
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="List what fits; needs only a config or a preset.")
    ] = False,
    show: Annotated[int, typer.Option(help="Rows of that list; 0 for all.")] = 20,
) -> None:
    """Cut a model down to a memory budget and write the child, ready to be distilled.

    The same command goes on where it was interrupted. The parent is only read.
    """
    from plait.cli import compress as verb

    if like is not None:
        verb.cut_alike(model, like, out)
        return

    given = {
        "memory": memory,
        "workload.context_tokens": context,
        "workload.batch": batch,
        "ranges.keep_attention": keep_attention,
        "ranges.align": align,
        "top_k": top_k,
    }
    resolved = verb.settings_of(settings, given, overrides or [])
    if dry:
        verb.dry_run(model, resolved, show)
    else:
        text = {"conversations": conversations, "documents": documents, "blend": blend}
        verb.run(model, resolved, text, out)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A recipe's run folder, for instance runs/tiny.")],
) -> None:
    """Write report.html again from the run's files."""
    from plait.eval.report import write_report

    typer.echo(f"report: {write_report(run)}")


for verb in align.VERBS:
    app.command()(verb)
app.command()(synth.synth)


# What the user gave is of another kind than asked for, or may not be written or read.
_PLACES = (errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def _say(error: OSError) -> str | None:
    """Say in a sentence what is wrong with a disk, file or folder; None for any other error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{where}; free some space, and the same command goes on from here"
    if error.errno in _PLACES and error.filename:
        return f"{error.filename}: {str(error.strerror).lower()}"
    return None


def main() -> None:
    """Run the command line; users' mistakes end in one sentence, not in a traceback."""
    set_library_defaults()
    try:
        # typer catches Ctrl-C and returns its code
        if app(standalone_mode=False) == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
    except _UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except PlaitError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        said = _say(error)
        if said is None:
            raise
        typer.echo(f"error: {said}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(EXIT_INTERRUPTED)
