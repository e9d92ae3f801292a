"""Write the tables of real models from the records of benchmarks/record_compare.py: a line a model in the README, all
methods in docs/quality.md, and there those in bfloat16 too.

python benchmarks/quality_table.py
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from marked import difference, markdown, rewritten

from dynattn.lab.compare.results import Comparison
from dynattn.lab.machine import describe
from dynattn.lab.words import label

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "compare"
START, END = "<!-- written by benchmarks/quality_table.py -->", "<!-- end -->"
BFLOAT16 = ("<!-- bfloat16: written by benchmarks/quality_table.py -->", "<!-- end of bfloat16 -->")
MODELS = {"minilm": "MiniLM", "smollm2": "SmolLM2-135M", "dinov2": "DINOv2-small", "whisper": "Whisper-tiny"}
PAGES = {"README.md": ("nm-1-2-x16",), "docs/quality.md": ("nm-1-2", "nm-1-2-x16", "nm-2-4", "nm-1-2-w64-s4")}
"""Methods by page. The README shows one setting for all models, not the best of each."""
COLUMNS = ("model", "method", "kept mass", "task: dense score", "difference to dense", "attention", "model")


def with_table(page: str, methods: Sequence[str]) -> str:
    """The page with the tables in their places: a row for each of ``methods`` that a model was measured with, and,
    where the page has a place for bfloat16, what was measured in it.

    Raises:
        ValueError: the page has no place for the first.
    """
    rows: list[Sequence[str]] = []
    for name in MODELS:
        found = _read(name)
        rows += [_row(found, method) for method in methods if method in found.methods]
    page = rewritten(page, START, markdown(COLUMNS, rows), END, "quality_table")
    return rewritten(page, BFLOAT16[0], _in_bfloat16(), BFLOAT16[1], "quality_table") if BFLOAT16[0] in page else page


def _in_bfloat16() -> str:
    """All that was recorded of models in bfloat16, and where."""
    found = [_read(path.stem) for path in sorted(RESULTS.glob("*-bfloat16.json"))]
    if not found:
        return "Not measured yet."
    rows = [_row(each, method) for each in found for method in each.methods]
    return f"{describe(found[0].machine)}:\n\n{markdown(COLUMNS, rows)}"


def _read(name: str) -> Comparison:
    return Comparison.model_validate_json((RESULTS / f"{name}.json").read_text())


def _row(found: Comparison, method: str) -> list[str]:
    """The first task, which is the model's own; times as fast as dense attention by SDPA."""
    task = found.tasks[0]
    scores = {result.method: result for result in task.results}
    masses = [mass for kept in found.kept if kept.method == method for layer in kept.mass for mass in layer]
    mass = statistics.fmean(masses or [1.0])  # dense attention keeps all, and is not asked
    attention, model = (
        next(row.speedup.median for row in timed.rows if row.method == method)
        for timed in (found.attention, found.latency)
    )
    return [
        f"{MODELS[found.model]}, {found.latency.length} tokens", label(method), f"{mass:.2f}",
        f"{task.metric.split(',')[0]}: {scores['sdpa'].score:.3f}", difference(scores[method].difference),
        f"{attention:.2f}×", f"{model:.2f}×",
    ]  # fmt: skip


if __name__ == "__main__":
    for name, methods in PAGES.items():
        page = ROOT / name
        page.write_text(with_table(page.read_text(encoding="utf-8"), methods), encoding="utf-8")
