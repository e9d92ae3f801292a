"""What ``dynattn inspect`` does: load, inspect, print the layers, write the page."""

from __future__ import annotations

import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dynattn.lab.data.plaintext import read_text
from dynattn.lab.inspect import Inspection, from_image, from_text, inspect
from dynattn.lab.inspect.sections import page
from dynattn.lab.models import load
from dynattn.methods import NM, parse


def run(
    text: str | None,
    file: Path | None,
    image: Path | None,
    model: str,
    method: str,
    layer: int | None,
    head: int | None,
    tokens: int,
    output: Path,
) -> None:
    """See :func:`dynattn.cli.inspect.inspect`, whose options these are."""
    console = Console()
    chosen = parse(method)
    if not isinstance(chosen, NM):
        raise ValueError(f"inspect: method must be an N:M method: got {method!r}")
    with console.status(f"loading {model}") as status:
        pretrained = load(model)
        if image is not None or (pretrained.kind == "vision" and text is None and file is None):
            subject = from_image(pretrained, image)
        else:
            title = "Text given" if text is not None else file.name if file is not None else "A news article"
            subject = from_text(pretrained, read_text(file) if file else text, title, tokens)
        found = inspect(
            pretrained, subject, chosen, layer, head,
            lambda done, total: status.update(f"measuring {len(subject.labels)} tokens: layer {done} of {total}"),
        )  # fmt: skip
        status.update("drawing")
        document = page(found)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(document, encoding="utf-8")
    console.print(f"{found.model}\n{subject.title}", highlight=False)
    console.print(summary(found))
    console.print(
        f"Output of the model with {chosen.name} in every layer: error {found.output_error:.1%}, "
        f"cosine {found.output_cosine:.4f}\nPage: [bold]{output}[/bold]",
        highlight=False,
    )


def summary(found: Inspection) -> Table:
    """A line for each layer and one for all, to print in a terminal."""
    table = Table(title=f"What {found.method.name} keeps", title_justify="left")
    table.add_column("layer")
    for name in ("σ", "kept mass", "lowest head", "theory", "top-k", "random", "density", "output error"):
        table.add_column(name, justify="right")
    layers = {h.layer for h in found.heads}
    for name, heads in (
        *((str(layer), [h for h in found.heads if h.layer == layer]) for layer in sorted(layers)),
        ("all", found.heads),
    ):
        mean = {
            field: statistics.fmean(getattr(h, field) for h in heads)
            for field in ("sigma", "kept_mass", "predicted", "top_k", "random", "density", "output_error")
        }
        if name == "all":
            table.add_section()
        table.add_row(
            name, f"{mean['sigma']:.2f}", f"{mean['kept_mass']:.3f}", f"{min(h.kept_mass for h in heads):.3f}",
            f"{mean['predicted']:.3f}", f"{mean['top_k']:.3f}", f"{mean['random']:.3f}", f"{mean['density']:.1%}",
            f"{mean['output_error']:.1%}",
        )  # fmt: skip
    return table
