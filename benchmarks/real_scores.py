"""Record what 2:4 keeps of real scores, and write the table of docs/theory.md from the record.

    python benchmarks/real_scores.py           # measures, a few minutes: benchmarks/results/real_scores.json
    python benchmarks/real_scores.py table     # docs/theory.md from the record

The same figures as ``dynattn inspect`` shows for its default text or image: means over all heads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from marked import rewritten

from dynattn import NM
from dynattn.lab.inspect import from_image, from_text, inspect
from dynattn.lab.machine import machine
from dynattn.lab.models import load
from dynattn.lab.records import write_json

RECORD = Path(__file__).parent / "results" / "real_scores.json"
PAGE = Path(__file__).parent.parent / "docs" / "theory.md"
START, END = "<!-- written by benchmarks/real_scores.py -->", "<!-- end -->"
METHOD = NM(2, 4)
MODELS = {"minilm": "MiniLM", "smollm2": "SmolLM2", "dinov2": "DINOv2"}
COLUMNS = {
    "sigma": "σ", "predicted": "theory", "shuffled": "shuffled", "kept_mass": "as it is", "top_k": "top 50%",
    "random": "random",
}  # fmt: skip


def measure(model: str) -> dict[str, Any]:
    """A model's figures on the default text or image."""
    pretrained = load(model)
    vision = pretrained.kind == "vision"
    subject = from_image(pretrained, None) if vision else from_text(pretrained, None, "A news article", 512)
    found = inspect(pretrained, subject, METHOD)
    return {
        "model": pretrained.description, "subject": subject.title, "tokens": len(subject.labels),
        "heads": len(found.heads), "means": {field: found.mean(field) for field in COLUMNS},
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [f"| model | {' | '.join(COLUMNS.values())} |", "|" + "---|" * (1 + len(COLUMNS))]
    for model, title in MODELS.items():
        found = record["models"][model]
        figures = " | ".join(f"{found['means'][field]:.{2 if field == 'sigma' else 3}f}" for field in COLUMNS)
        lines.append(f"| {title}, {found['tokens']} tokens | {figures} |")
    return "\n".join(lines)


def with_table(page: str, record: dict[str, Any]) -> str:
    """The page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    return rewritten(page, START, table(record), END, "real_scores")


def main(arguments: list[str]) -> int:
    """Measure, or write the page."""
    if arguments == ["table"]:
        PAGE.write_text(with_table(PAGE.read_text(), json.loads(RECORD.read_text())))
        return 0
    if arguments:
        print(__doc__)
        return 2
    record = {"method": METHOD.name, "machine": machine(), "models": {model: measure(model) for model in MODELS}}
    write_json(RECORD, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
