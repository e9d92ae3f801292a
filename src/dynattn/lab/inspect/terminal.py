"""Prints an inspection: a line for each layer, and the loss of the whole model."""

from __future__ import annotations

import statistics

from rich.console import Console

from dynattn.lab.inspect import Inspection
from dynattn.lab.terminal import Grid, print_grid, say

_MEANS = ("sigma", "kept_mass", "predicted", "top_k", "random", "density", "output_error")


def show(found: Inspection, console: Console) -> None:
    """Print an inspection.

    Args:
        found: what was measured.
        console: where to print.
    """
    say(console, f"{found.model}\n{found.subject.title}")
    print_grid(console, summary(found))
    say(
        console,
        f"Output of the model with {found.method.name} in every layer: error {found.output_error:.1%}, "
        f"cosine {found.output_cosine:.4f}",
    )


def summary(found: Inspection) -> Grid:
    """A line for each layer and one for all."""
    columns = (
        "layer", "σ", "kept mass", "lowest head", "theory", "top-k", "random", "density", "output error",
    )  # fmt: skip
    layers = sorted({h.layer for h in found.heads})
    groups = [(str(layer), [h for h in found.heads if h.layer == layer]) for layer in layers]
    rows = []
    for name, heads in (*groups, ("all", found.heads)):
        mean = {field: statistics.fmean(getattr(h, field) for h in heads) for field in _MEANS}
        rows.append([
            name, f"{mean['sigma']:.2f}", f"{mean['kept_mass']:.3f}", f"{min(h.kept_mass for h in heads):.3f}",
            f"{mean['predicted']:.3f}", f"{mean['top_k']:.3f}", f"{mean['random']:.3f}", f"{mean['density']:.1%}",
            f"{mean['output_error']:.1%}",
        ])  # fmt: skip
    return Grid(f"What {found.method.name} keeps", columns, rows, breaks=(len(layers) - 1,))
