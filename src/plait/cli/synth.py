"""`plait synth`: one generator alone, on a user's documents or seeds, by a user's endpoint."""

from typing import Annotated, Any

import typer

from plait.cli.align import Out, Overrides, run_alone


def synth(
    generator: Annotated[str, typer.Argument(help="stem, dialogue, diverse_qa, translate ...")],
    url: Annotated[str, typer.Option(help="Endpoint, for instance http://127.0.0.1:8000/v1.")],
    model: Annotated[str, typer.Option(help="Name that the endpoint knows its model by.")],
    out: Out,
    data: Annotated[
        list[str] | None, typer.Option(help="JSONL with seeds, tools, conversations or documents.")
    ] = None,
    documents: Annotated[
        list[str] | None, typer.Option(help="Run folder with documents to write from.")
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="Category of what is written; the generator's name if none.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Have a model write text: plait synth diverse_qa --documents runs/mine/01_curate ..."""
    table: dict[str, Any] = {
        "generator": generator,
        "category": category or generator.replace("_", "-"),
        "files": data or [],
        "endpoints": {"default": {"url": url, "model": model}},
    }
    inputs = {f"documents.{number}": path for number, path in enumerate(documents or [], 1)}
    run_alone("synth", inputs, table, out, overrides)
