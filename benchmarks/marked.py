"""Text between two marks of a page, which a script writes, tables in Markdown, and times in records and cells; and
records that are made case by case."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynattn.lab.figures import Interval
from dynattn.lab.machine import describe, machine
from dynattn.lab.records import write_json
from dynattn.lab.timing import Timing


def rewritten(page: str, start: str, text: str, end: str, script: str) -> str:
    """The page with ``text`` between the marks ``start`` and ``end``.

    Raises:
        ValueError: the page does not hold both marks; ``script`` is named.
    """
    before, found, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{script}: the page must hold {start!r} and {end!r}: it does not")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under their columns, in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def difference(found: Interval | None) -> str:
    """``+0.012 [-0.003, +0.027]``, without bounds where there are none; nothing of what is compared with itself."""
    if found is None:
        return ""
    bounds = "" if found.low is None or found.high is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.mean:+.3f}{bounds}"


def times(timings: Mapping[str, Timing], baseline: str) -> dict[str, dict[str, Any]]:
    """What a record holds of functions that were timed in alternation, by their names."""
    return {
        name: {"seconds": vars(timing.seconds), "speedup": vars(timing.speedup(timings[baseline]))}
        for name, timing in timings.items()
    }


def known_as(case: Any) -> dict[str, Any]:
    """The fields of a case as a record has them.

    Args:
        case: a named tuple with a ``dtype``.
    """
    return {**case._asdict(), "dtype": str(case.dtype).removeprefix("torch.")}


def measure_missing(
    path: Path, cases: Iterable[tuple[Mapping[str, Any], Callable[[], dict[str, Any]]]], **head: Any
) -> None:
    """Measure the cases that a record lacks, and write it after each.

    Args:
        path: the record.
        cases: the fields by which a case is known, and what measures it: it returns them with what was found.
        head: what a new record says before the cases, besides the machine.
    """
    found = json.loads(path.read_text()) if path.exists() else {"machine": machine(), **head, "cases": []}
    for known, measure in cases:
        if not any(all(row[name] == value for name, value in known.items()) for row in found["cases"]):
            found["cases"].append(measure())
            write_json(path, found)
            print(dict(known), flush=True)


def cases(found: Mapping[str, Any], heading: str) -> str:
    """The table of a record whose ``cases`` hold rows of times: a column a case, headed ``heading`` with its fields."""
    columns = ["", *(heading.format(**at) for at in found["cases"])]
    rows = [[name, *(time(at["rows"][name]) for at in found["cases"])] for name in found["cases"][0]["rows"]]
    return f"{describe(found['machine'])}:\n\n{markdown(columns, rows)}"


def time(row: Mapping[str, Any]) -> str:
    """One of :func:`times` in a cell: ``8.1 ms, 1.52×``."""
    return f"{1e3 * row['seconds']['median']:.1f} ms, {row['speedup']['median']:.2f}×"
