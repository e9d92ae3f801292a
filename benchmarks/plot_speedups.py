"""Draw the README's picture of measured speed-ups.

    python benchmarks/plot_speedups.py [record.json]

Reads a record of the suite "targets" (by default the one under benchmarks/results) and writes
docs/images/speedups.svg and speedups-dark.svg.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from pictures import IMAGES, save_both

from dynattn.lab.bench.plots import draw_speedups
from dynattn.lab.bench.record import Record, load

ROOT = Path(__file__).parent.parent
FUNCTIONS = {"dense": "dense (all kept)", "nm-2-4": "2:4", "nm-1-2": "1:2"}


def draw(record: Record) -> Figure:
    """Two rows of bars, not causal and causal."""
    figure = Figure(figsize=(8.2, 5.6), layout="constrained")
    rows = figure.subplots(2, 1)
    for axes, causal in zip(rows, (False, True), strict=True):
        results = tuple(r for r in record.results if r.workload.causal == causal)
        ink = matplotlib.rcParams["text.color"]
        draw_speedups(axes, replace(record, results=results), list(FUNCTIONS), values=True, ink=ink)
        axes.set_title("causal" if causal else "not causal", loc="right", fontsize=10)
        axes.set_xticklabels([label.get_text().removesuffix(" causal") for label in axes.get_xticklabels()])
    for text in rows[0].get_legend().get_texts():
        text.set_text(FUNCTIONS[text.get_text()])
    rows[1].get_legend().remove()
    top = max(axes.get_ylim()[1] for axes in rows)
    for axes in rows:
        axes.set_ylim(0, top)
    rows[1].set_xlabel("batch · heads × length × head_dim")
    threads, processor = record.machine["threads"], record.machine["processor"]
    figure.suptitle(f"float32 on {threads} threads of {processor}, torch {record.machine['torch']}", fontsize=9)
    return figure


def main(paths: Sequence[str]) -> int:
    """Write both pictures."""
    files = [Path(path) for path in paths] or sorted((ROOT / "benchmarks" / "results").glob("*-targets.json"))
    if len(files) != 1:
        print(f"plot_speedups: one record is drawn: got {[file.name for file in files]}; name it")
        return 2
    record = load(files[0])
    save_both(lambda: draw(record), IMAGES, "speedups")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
