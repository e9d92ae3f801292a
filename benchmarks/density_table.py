"""Write the tables of docs/density.md from the records of benchmarks/density.py.

python benchmarks/density_table.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from density import PLANS, Density
from marked import markdown, rewritten
from plot_density import records

from dynattn.lab.figures import BASELINE, TaskResult
from dynattn.lab.words import label, verdict

PAGE = Path(__file__).parent.parent / "docs" / "density.md"
START, END = "<!-- written by benchmarks/density_table.py -->", "<!-- end -->"


def tables(found: Sequence[Density]) -> str:
    """A table for each model, in Markdown, the methods by rising density."""
    whole = {record.model for record in found if _is_whole(record)}
    unfinished = [model for model in PLANS if model not in whole]
    note = [f"Not measured yet, or in part: {', '.join(unfinished)}."] if unfinished else []
    return "\n\n".join([*note, *(_table(record) for record in found)])


def with_tables(page: str, found: Sequence[Density]) -> str:
    """The page with the tables in their place.

    Raises:
        ValueError: the page has no place for them.
    """
    return rewritten(page, START, tables(found), END, "density_table")


def _is_whole(record: Density) -> bool:
    """Whether no method of no task is missing."""
    return len(record.tasks) == len(record.sizes) and all(
        len(task.results) == 1 + len(record.masses) for task in record.tasks
    )


def _table(record: Density) -> str:
    columns = ["method", "density", "kept mass", "theory"]
    for task in record.tasks:
        columns += [f"{task.name}: {task.metric.split(',')[0]}", "difference to dense"]
        columns += ["cosine to dense"] * _has_outputs(task)
    rows = [(label(BASELINE), "1", "1", "1", BASELINE)]
    for mass in sorted(record.masses, key=lambda mass: (round(mass.density, 2), mass.kept)):
        rows.append(
            (label(mass.method), f"{mass.density:.3f}", f"{mass.kept:.3f}", f"{mass.expected:.3f}", mass.method)
        )
    lines = [[*cells, *(part for task in record.tasks for part in _cells(task, method))] for *cells, method in rows]
    return f"**{record.model}** ({'; '.join(task.data for task in record.tasks)})\n\n{markdown(columns, lines)}"


def _cells(task: TaskResult, method: str) -> list[str]:
    """Score, difference and cosine; the difference is bold where it is a loss that the interval tells from noise."""
    result = next((result for result in task.results if result.method == method), None)
    if result is None:
        return ["not measured", ""] + [""] * _has_outputs(task)
    text, change = "", result.difference
    if change is not None and change.low is not None and change.high is not None:
        text = f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
        text = f"**{text}**" if verdict(task, result) == "worse" else text
    agreement = [] if result.agreement is None else [f"{result.agreement:.4f}"]
    return [f"{result.score:.3f}", text, *agreement]


def _has_outputs(task: TaskResult) -> bool:
    """Whether the task compares outputs too."""
    return task.results[0].agreement is not None


def main() -> int:
    """Write the page."""
    PAGE.write_text(with_tables(PAGE.read_text(), records()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
