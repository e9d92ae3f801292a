"""How many weights of a pretrained model can be 0 before its score falls off: by magnitude, inputs, N:M and chance.

    python benchmarks/essential.py minilm     # ten minutes on two cores; smollm2 three quarters of an hour
    python benchmarks/essential.py table      # the table of docs/methods/weights.md

Writes benchmarks/results/weights/<model>.json after every point: a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from marked import markdown, rewritten

from dynattn.lab.machine import machine
from dynattn.lab.prune.essential import KNEE, Thinned, knee, thinned
from dynattn.lab.prune.run import examine
from dynattn.lab.prune.settings import Settings
from dynattn.lab.records import write_json
from dynattn.lab.words import percent

RESULTS = Path(__file__).parent / "results" / "weights"
PAGE = Path(__file__).parent.parent / "docs" / "methods" / "weights.md"
START, END = "<!-- written by benchmarks/essential.py -->", "<!-- end -->"
MODELS = ("minilm", "smollm2")
KEPT = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2)
SPARSE = (0.5, 0.4, 0.3, 0.2)
PATTERNS = ("1-2", "2-4", "4-8", "1-4")
RANDOM = (0.95, 0.9, 0.8, 0.7, 0.5)
FAMILIES = {
    "magnitude": [f"magnitude-{keep}" for keep in KEPT],
    "Wanda": [f"wanda-{keep}" for keep in KEPT],
    "Wanda, DSnoT": [f"wanda-{keep}-dsnot" for keep in SPARSE],
    "Wanda, DSnoT without signs": [f"wanda-{keep}-dsnot-unsigned" for keep in SPARSE],
    "N:M": [f"nmweight-{pattern}" for pattern in PATTERNS],
    "N:M, Wanda": [f"nmweight-{pattern}-wanda" for pattern in PATTERNS],
    "N:M, DSnoT": [f"nmweight-{pattern}-wanda-dsnot" for pattern in PATTERNS],
    "random, ERK": [f"randomweight-{keep}" for keep in RANDOM],
    "random, uniform": [f"randomweight-{keep}-uniform" for keep in RANDOM],
    "random search": [f"randomweight-0.9-r{seed}" for seed in range(8)],
}
"""The methods of each family; of random search the one that does best on validation is shown."""


def measure(model: str) -> None:
    """Score what the record lacks."""
    path = RESULTS / f"{model}.json"
    exam = examine(Settings(model=model))
    found: dict[str, Any] = (
        json.loads(path.read_text())
        if path.exists()
        else {"machine": machine(), "metric": exam.task.metric, "data": exam.data.summary, "points": {}}
    )
    for name in dict.fromkeys(name for names in FAMILIES.values() for name in names):
        if name not in found["points"]:
            found["points"][name] = thinned(exam, name).model_dump()
            write_json(path, found)
            print(name, found["points"][name]["validation"]["mean"], flush=True)


def _curves(model: str) -> dict[str, list[Thinned]]:
    path = RESULTS / f"{model}.json"
    points = json.loads(path.read_text())["points"] if path.exists() else {}
    return {
        family: [Thinned.model_validate(points[name]) for name in names if name in points]
        for family, names in FAMILIES.items()
    }


def table() -> str:
    """Every point, and the knee of each curve, in Markdown."""
    parts = []
    for model in MODELS:
        curves = {family: points for family, points in _curves(model).items() if points}
        rows = [
            [family, f"`{one.name}`", f"{one.sparsity:.0%}", percent(one.held_out)]
            for family, points in curves.items()
            for one in _shown(family, points)
        ]
        knees = [
            f"{family} {'none of these' if (found := knee(points)) is None else f'{found.sparsity:.0%}'}"
            for family, points in curves.items()
            if family != "random search"
        ]
        if rows:
            columns = ["family", "method", "weights at 0", "held-out items retain"]
            said = f"Sparsest that retain {KNEE:.0%} on validation: {', '.join(knees)}."
            parts.append(f"**{model}**\n\n{markdown(columns, rows)}\n\n{said}")
    return "\n\n".join(parts) or "Not measured yet."


def _shown(family: str, points: list[Thinned]) -> list[Thinned]:
    if family != "random search":
        return points
    return [max(points, key=lambda one: one.validation.mean)]  # shares: higher is better whatever the metric


def main(arguments: list[str]) -> None:
    """Measure a model, or write the table."""
    if arguments == ["table"]:
        PAGE.write_text(rewritten(PAGE.read_text(), START, table(), END, "essential"))
    elif len(arguments) == 1 and arguments[0] in MODELS:
        measure(arguments[0])
    else:
        raise SystemExit(f"essential: usage: essential.py {'|'.join(MODELS)}|table")


if __name__ == "__main__":
    main(sys.argv[1:])
