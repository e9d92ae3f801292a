"""Draw quality and kept mass against density, from the records of benchmarks/density.py.

    python benchmarks/plot_density.py

Writes docs/images/density.svg and density-mass.svg, each with a twin for dark pages.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import matplotlib
from density import PLANS, RESULTS, Density
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pictures import IMAGES, save_both

from dynattn import NM
from dynattn.lab.figures import Quality, TaskResult
from dynattn.lab.page import COLORS

SERIES = {  # (strided, windowed): name, colour
    (False, False): ("N:M", COLORS[0]),
    (False, True): ("N:M and a window", COLORS[1]),
    (True, False): ("N:M of stride 16", COLORS[2]),
    (True, True): ("N:M of stride 16 and a window", COLORS[3]),
}
MARKERS = {2: "o", 4: "^", 8: "s"}  # by m
GREY = COLORS[5]
ASIDE = 0.013  # of the axis, between points of equal density


def records() -> list[Density]:
    """Those there are, in the order of the plans."""
    paths = [RESULTS / f"{model}.json" for model in PLANS]
    return [Density.model_validate_json(path.read_text()) for path in paths if path.exists()]


def quality_figure(found: Sequence[Density]) -> Figure:
    """A panel for each task: what quality loses, by measured density."""
    tasks = [(record, task) for record in found for task in record.tasks]
    figure, panels = _panels(len(tasks))
    for axes, (record, task) in zip(panels, tasks, strict=False):
        _quality(axes, record, task)
    _key(figure, "dense attention")
    return figure


def mass_figure(found: Sequence[Density]) -> Figure:
    """A panel for each model: measured kept mass, and the theory's, by measured density."""
    figure, panels = _panels(len(found))
    for axes, record in zip(panels, found, strict=False):
        axes.axline((0, 0), (1, 1), color=GREY, linewidth=0.8)
        for mass in record.masses:
            nm = NM.from_name(mass.method)
            if nm is None or nm.keeps_everything:
                continue
            _, color = SERIES[_series(nm)]
            x = _beside(mass.density, nm)
            axes.plot((x, x), (mass.kept, mass.expected), color=color, linewidth=0.7)
            axes.plot(x, mass.kept, MARKERS[nm.m], color=color, markersize=4)
            axes.plot(x, mass.expected, MARKERS[nm.m], color=color, markersize=4, fillstyle="none")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="density, measured", ylabel="kept mass")
        axes.set_title(record.model, fontsize=10)
    _key(figure, "a choice that does not look at the scores", theory=True)
    return figure


def main() -> int:
    """Write both pictures."""
    found = records()
    if not found:
        print(f"plot_density: {RESULTS} must hold records: run benchmarks/density.py")
        return 2
    save_both(lambda: quality_figure(found), IMAGES, "density")
    save_both(lambda: mass_figure(found), IMAGES, "density-mass")
    return 0


def _series(nm: NM) -> tuple[bool, bool]:
    return nm.stride > 1, nm.window > 0


def _beside(density: float, nm: NM) -> float:
    """Where a method is drawn: about half of the pairs is kept by ten of them."""
    strided, windowed = _series(nm)
    place = {2: -1, 4: 0, 8: 1}[nm.m] + (3 if windowed else -3) * strided
    return density + ASIDE * (place + (1 if windowed else -1))


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """Two beside each other; one left over stays empty."""
    rows = -(-count // 2)
    figure = Figure(figsize=(8.6, 2.9 * rows + 0.6), layout="constrained")
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes in panels[count:]:
        axes.axis("off")
    return figure, panels


def _quality(axes: Axes, record: Density, task: TaskResult) -> None:
    sign = 1 if task.higher_is_better else -1
    axes.axhline(0, color=GREY, linewidth=0.8)
    floor = _floor(task, sign)
    for mass in record.masses:
        nm = NM.from_name(mass.method)
        result = next((result for result in task.results if result.method == mass.method), None)
        if nm is None or nm.keeps_everything or result is None or result.difference is None:
            continue
        _, color = SERIES[_series(nm)]
        mean, low, high = _bounds(result, sign)
        x = _beside(mass.density, nm)
        if mean < floor:
            axes.annotate(f"{nm.n}:{nm.m}  {mean:+.2f}", (x, floor), (4, 8), textcoords="offset points", color=color)
            axes.plot(x, floor, "v", color=color, markersize=4)
            continue
        axes.errorbar(
            x, mean, yerr=[[mean - low], [high - mean]], fmt=MARKERS[nm.m], color=color, markersize=4,
            linewidth=0.9,
        )  # fmt: skip
    bottom, top = axes.get_ylim()
    axes.set(xlim=(0.05, 1), ylim=(max(bottom, floor * 1.1), top), xlabel="density, measured")
    metric = task.metric.split(",")[0]
    axes.set_ylabel(f"change of {metric}" + ("" if sign > 0 else "\n(sign turned)"))
    axes.set_title(f"{record.model}: {task.name}", fontsize=10)


def _bounds(result: Quality, sign: int) -> tuple[float, float, float]:
    """Mean, low and high of the difference, up being better."""
    change = result.difference
    if change is None:
        return 0.0, 0.0, 0.0
    low, high = (change.mean if bound is None else bound for bound in (change.low, change.high))
    return sign * change.mean, min(sign * low, sign * high), max(sign * low, sign * high)


def _floor(task: TaskResult, sign: int) -> float:
    """Where the panel ends below: twice the worst of the methods that keep half of the pairs or more."""
    halves = [
        _bounds(result, sign)[1]
        for result in task.results
        if (nm := NM.from_name(result.method)) is not None and 2 * nm.n >= nm.m
    ]
    return 2 * min(halves, default=-math.inf)


def _key(figure: Figure, line: str, theory: bool = False) -> None:
    """What colours, markers and lines mean, below all panels."""
    ink = matplotlib.rcParams["text.color"]
    handles = [Line2D([], [], marker="o", linestyle="", color=color, label=name) for name, color in SERIES.values()]
    for m, marker in MARKERS.items():
        handles.append(Line2D([], [], marker=marker, linestyle="", color=ink, label=f"M = {m}"))
    handles.append(Line2D([], [], color=GREY, linewidth=0.8, label=line))
    if theory:
        handles.append(
            Line2D([], [], marker="o", linestyle="", color=ink, fillstyle="none", label="hollow: expected by theory")
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


if __name__ == "__main__":
    sys.exit(main())
