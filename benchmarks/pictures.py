"""Pictures of the documentation, each for a light and a dark page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

IMAGES = Path(__file__).parent.parent / "docs" / "images"
INKS = {"": "#1f2328", "-dark": "#e6edf3"}  # GitHub's text colours


def save_both(draw: Callable[[], Figure], folder: Path, stem: str) -> None:
    """Write ``stem.svg`` and ``stem-dark.svg``, on no ground.

    Args:
        draw: makes the figure; lines and texts without a colour of their own take the page's ink.
        folder: made if need be.
        stem: of the files' names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, ink in INKS.items():
        style = matplotlib.rc_context({
            "text.color": ink, "axes.edgecolor": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink,
            "lines.color": ink, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
            "font.size": 9, "svg.hashsalt": "dynattn",  # the same record gives the same file
        })  # fmt: skip
        with style:
            draw().savefig(folder / f"{stem}{suffix}.svg", transparent=True, metadata={"Date": None})
