"""Draws a record: speed-ups over dense attention, and how much of the machine each function uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dynattn.lab.bench.peers import DENSE, SDPA, UNFUSED
from dynattn.lab.bench.record import Record, Result
from dynattn.lab.page import COLORS, new_figure
from dynattn.lab.timing import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GROUP = 0.8  # the share of the distance between two workloads that bars fill
_FLAT_LABELS = 7  # the names of so many workloads fit side by side
_FIXED = {SDPA: COLORS[5], UNFUSED: COLORS[6], "dense": COLORS[0], "nm-2-4": COLORS[1], "nm-1-2": COLORS[2]}


def speedups(record: Record) -> Figure:
    """Bars over the workloads: how many times as fast as the baseline, with quartiles."""
    functions = [name for name in functions_of(record) if name not in DENSE]
    figure, axes = _figure(record)
    draw_speedups(axes, record, functions)
    return figure


def shares_of_peak(record: Record) -> Figure:
    """Bars over the workloads: FLOPs a second that each function needs, over the machine's peak."""
    figure, axes = _figure(record)
    functions = functions_of(record)
    _bars(axes, record, functions, record.share_of_peak)
    axes.set_ylabel("share of multiply-add peak")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    _legend(axes, len(functions))
    return figure


def draw_speedups(
    axes: Axes, record: Record, functions: Sequence[str], values: bool = False, ink: str = "black"
) -> None:
    """Draw speed-ups over :meth:`Record.baseline` into ``axes``.

    Args:
        axes: the axes to draw into.
        record: the record of a run.
        functions: which, in order.
        values: write each figure above its bar.
        ink: colour of the lines.
    """

    def spread_of(result: Result) -> Spread | None:
        return record.speedup(result.workload, result.function, record.baseline(result.workload))

    def speedup(result: Result) -> float | None:
        spread = spread_of(result)
        return spread.median if spread else None

    bars = _bars(axes, record, functions, speedup)
    for result, x, height in bars:
        spread = spread_of(result)
        if spread is None:
            continue
        axes.plot([x, x], [spread.q1, spread.q3], color=ink, linewidth=0.8)
        if values:
            axes.annotate(
                f"{height:.2f}", (x, max(height, spread.q3)), (0, 2), textcoords="offset points", ha="center",
                fontsize=7,
            )  # fmt: skip
    axes.axhline(1, color=ink, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_ylabel(f"times as fast as {baseline_name(record)}")
    _legend(axes, len(functions))


def baseline_name(record: Record) -> str:
    """The name of :meth:`Record.baseline` in words."""
    return "the fastest dense attention" if record.on_gpu else "SDPA"


def functions_of(record: Record) -> list[str]:
    """Names of the functions, SDPA and unfused first."""
    return list(dict.fromkeys([SDPA, UNFUSED, *(result.function for result in record.results)]))


def _figure(record: Record) -> tuple[Figure, Axes]:
    return new_figure(width=max(7.0, 0.75 * len(record.by_workload())), height=3.6)


def _bars(
    axes: Axes, record: Record, functions: Sequence[str], height: Callable[[Result], float | None]
) -> list[tuple[Result, float, float]]:
    """One bar a function in each workload's group; returns each result with where its bar stands and ends."""
    groups = record.by_workload()
    width = _GROUP / len(functions)
    drawn = []
    for i, function in enumerate(functions):
        for j, results in enumerate(groups.values()):
            value = height(results[function]) if function in results else None
            if value is not None:
                drawn.append((results[function], j + (i + 0.5) * width - _GROUP / 2, value))
        own = [(x, value) for result, x, value in drawn if result.function == function]
        color = _color(function, functions)
        axes.bar([x for x, _ in own], [value for _, value in own], width * 0.92, color=color, label=function)
    labels = [workload.label for workload in groups]
    if len(labels) > _FLAT_LABELS:
        axes.set_xticks(range(len(groups)), labels, fontsize=8, rotation=35, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(groups)), labels, fontsize=8)
    return drawn


def _color(function: str, functions: Sequence[str]) -> str:
    """The colour of a function: the same in every picture for the functions of the suites, a spare one for any
    other."""
    others = [name for name in functions if name not in _FIXED]
    left = [color for color in COLORS if color not in _FIXED.values()]
    return _FIXED[function] if function in _FIXED else left[others.index(function) % len(left)]


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
