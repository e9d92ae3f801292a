"""``dynattn inspect``: what a model keeps of one text or image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynattn.cli.options import TrustRemoteCode, counted, output_file
from dynattn.cli.running import running
from dynattn.lab.models.trust import trusting


def inspect(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Text to look at; by default a news article.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from a file.", exists=True, dir_okay=False)] = None,
    image: Annotated[Path | None, typer.Option(help="Image, for a vision model.", exists=True, dir_okay=False)] = None,
    model: Annotated[str, typer.Option(help="minilm, smollm2, dinov2, a local folder or a hub id.")] = "minilm",
    method: Annotated[str, typer.Option(help="What to keep, as in nm-2-4 or nm-1-2-w64-s4.")] = "nm-2-4",
    layer: Annotated[int | None, typer.Option(help="Draw heads of this layer.", callback=counted(0))] = None,
    head: Annotated[
        int | None, typer.Option(help="Draw this head; by default the worst and the best.", callback=counted(0))
    ] = None,
    tokens: Annotated[int, typer.Option(help="Cut the text after so many tokens.", callback=counted())] = 512,
    trust_remote_code: TrustRemoteCode = False,
    output: Annotated[Path, typer.Option(help="Where to write the page.", callback=output_file)] = Path(
        "reports/inspect.html"
    ),
) -> None:
    """Look inside: what a model keeps of one text or image, head by head, beside what theory expects."""
    with running("inspect", "evals", {"--text": "TEXT or --file"}), trusting(trust_remote_code):
        from dynattn.lab.inspect.command import Settings, run
        from dynattn.lab.terminal import console

        settings = Settings(
            text=text, file=file, image=image, model=model, method=method, layer=layer, head=head, tokens=tokens,
        )  # fmt: skip
        run(settings, output, console())
