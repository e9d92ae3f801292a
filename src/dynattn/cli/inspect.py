"""``dynattn inspect``: what a model keeps of one text or image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    text: Annotated[str | None, typer.Argument(help="Text to look at; by default a news article.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from a file.", exists=True, dir_okay=False)] = None,
    image: Annotated[Path | None, typer.Option(help="Image, for a vision model.", exists=True, dir_okay=False)] = None,
    model: Annotated[str, typer.Option(help="minilm, smollm2, dinov2, a local folder or a hub id.")] = "minilm",
    method: Annotated[str, typer.Option(help="What to keep, as in nm-2-4 or nm-1-2-w64-s4.")] = "nm-2-4",
    layer: Annotated[int | None, typer.Option(help="Draw heads of this layer.")] = None,
    head: Annotated[int | None, typer.Option(help="Draw this head; by default the worst and the best.")] = None,
    tokens: Annotated[int, typer.Option(help="Cut the text after so many tokens.", min=1)] = 512,
    output: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("reports/inspect.html"),
) -> None:
    """Look inside: what a model keeps of one text or image, head by head, beside what theory expects."""
    if sum(given is not None for given in (text, file, image)) > 1:
        raise typer.BadParameter("give one of TEXT, --file and --image")
    try:
        from dynattn.lab.data.packages import PackageUnavailableError
        from dynattn.lab.inspect.command import run
    except ImportError as error:
        raise typer.BadParameter(f"inspect needs more packages ({error}): pip install 'dynattn[evals]'") from error
    try:
        run(text, file, image, model, method, layer, head, tokens, output)
    except (ValueError, ImportError, PackageUnavailableError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
