"""Text between two marks of a page, which a script writes, tables in Markdown, and times in records and cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynattn.lab.figures import Interval
from dynattn.lab.machine import describe
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


def cases(found: Mapping[str, Any], heading: str) -> str:
    """The table of a record whose ``cases`` hold rows of times: a column a case, headed ``heading`` with its fields."""
    columns = ["", *(heading.format(**at) for at in found["cases"])]
    rows = [[name, *(time(at["rows"][name]) for at in found["cases"])] for name in found["cases"][0]["rows"]]
    return f"{describe(found['machine'])}:\n\n{markdown(columns, rows)}"


def time(row: Mapping[str, Any]) -> str:
    """One of :func:`times` in a cell: ``8.1 ms, 1.52×``."""
    return f"{1e3 * row['seconds']['median']:.1f} ms, {row['speedup']['median']:.2f}×"
