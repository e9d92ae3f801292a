"""Write the tables of docs/frontier.md from the records of benchmarks/record_frontier.py.

python benchmarks/frontier_table.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from marked import markdown, rewritten

from dynattn.lab.figures import Interval
from dynattn.lab.frontier.document import against_baselines, judged, share
from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.store import load
from dynattn.lab.frontier.summary import Contender, contenders, phases, timing_machine

PAGE = Path(__file__).parent.parent / "docs" / "frontier.md"
RESULTS = Path(__file__).parent / "results" / "frontier"
START, END = "<!-- written by benchmarks/frontier_table.py -->", "<!-- end -->"


def records() -> list[Frontier]:
    """Those there are, by name."""
    return [load(path) for path in sorted(RESULTS.glob("*.json"))]


def with_tables(page: str, found: Sequence[Frontier]) -> str:
    """The page with the tables in their place.

    Raises:
        ValueError: the page has no place for them.
    """
    tables = [_table(record, phase) for record in found for phase in phases(record)]
    text = "\n\n".join(tables) or "Not recorded yet."
    return rewritten(page, START, text, END, "frontier_table")


def _table(found: Frontier, phase: str) -> str:
    machine = found.machines.get(timing_machine(found) or "", {})
    head = f"**{found.model}, {phase}**"
    if machine:
        head += f": {machine['processor']}, {machine['threads']} threads, torch {machine['torch']}"
    columns = ("method", "short name", "pairs", "FLOPs", "time", "worst exam", "", "mean", "against baselines")
    best_first = sorted(contenders(found, phase), key=lambda one: -one.worst.retained.mean)  # type: ignore[arg-type]
    return f"{head}\n\n{markdown(columns, [_cells(one) for one in best_first])}"


def _cells(contender: Contender) -> list[str]:
    """Shares of dense attention's; bold where the interval of what is retained leaves 100% out."""
    worst = contender.worst
    return [
        contender.label, "<br>".join(f"`{name}`" for name in contender.names), percent(contender.density),
        percent(contender.flops), percent(contender.time), emphasized(worst.retained), worst.sheet.exam.title,
        emphasized(contender.retained), against_baselines(contender),
    ]  # fmt: skip


def emphasized(found: Interval) -> str:
    """A share; bold where the interval leaves 100% out."""
    return share(found) if judged(found) == "within noise" else f"**{share(found)}**"


def percent(value: float | None) -> str:
    """Without digits after the point; a dash for nothing."""
    return "–" if value is None else f"{value:.0%}"


def main() -> int:
    """Write the page."""
    PAGE.write_text(with_tables(PAGE.read_text(), records()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
