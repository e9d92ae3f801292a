"""Figures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynattn.lab.compare.results import Comparison, Kept
from dynattn.lab.figures import BASELINE, TaskResult
from dynattn.lab.page import COLORS, new_figure, svg
from dynattn.lab.words import label

TRADEOFF_CAPTION = (
    "Change of quality (up is better) against speed-up of the whole model at batch 1 (right is better), both over "
    "SDPA. Bars: 95% interval of the paired difference; quartiles of the speed-up. A vertical bar that crosses the "
    "horizontal line: no difference that these items can tell from noise."
)
SHARES_CAPTION = (
    "Median time of one forward at batch 1, split into the time inside Transformers' attention functions and the rest, "
    "both clocked in the same runs."
)
HEAT_CAPTION = "Mean kept mass by layer (rows, the first on top) and head (columns). 1 is dense attention."


def tradeoff(found: Comparison) -> str:
    """A panel for each task: the change of quality against the end-to-end speed-up."""
    count = len(found.tasks)
    figure, axes = new_figure(9.0, 3.6, 1, count)
    for ax, task in zip(np.atleast_1d(axes), found.tasks, strict=True):
        _panel(ax, found, task)
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return svg(figure, "quality difference against speed-up, one point a method")


def _panel(ax, found: Comparison, task: TaskResult) -> None:
    sign = 1 if task.higher_is_better else -1
    ax.axhline(0, color="#8a8f98", linewidth=0.8)
    ax.axvline(1, color="#8a8f98", linewidth=0.8)
    ax.plot(1, 0, "D", color="#8a8f98", label=label(BASELINE))
    for color, method in zip(_colors(found.methods), found.methods, strict=True):
        difference, speed = task.of(method).difference, found.latency.of(method)
        if difference is None or speed is None:
            continue
        mean, (low, high) = sign * difference.mean, (difference.low, difference.high)
        bars = None
        if low is not None and high is not None:
            low, high = sorted((sign * low, sign * high))
            bars = [[mean - low], [high - mean]]
        x = speed.speedup
        across = [[x.median - x.q1], [x.q3 - x.median]]
        ax.errorbar(
            x.median, mean, yerr=bars, xerr=across, fmt="o", color=color, capsize=3, linewidth=1.2, label=label(method)
        )
    ax.set_title(task.name)
    ax.set_xlabel("speed-up of the whole model")
    ax.set_ylabel(f"change of {task.metric.split(',')[0]}" + ("" if sign > 0 else ", sign turned"))
    ax.margins(0.15)


def shares(found: Comparison) -> str:
    """Stacked bars of the time inside attention and outside."""
    rows = found.shares
    figure, ax = new_figure(9.0, 0.8 + 0.38 * len(rows))
    inside = np.array([row.attention for row in rows]) * 1e3
    rest = np.array([row.forward for row in rows]) * 1e3 - inside
    at = np.arange(len(rows))[::-1]
    ax.barh(at, inside, 0.6, color=COLORS[0], label="attention")
    ax.barh(at, rest, 0.6, left=inside, color="#8a8f98", alpha=0.45, label="the rest")
    for y, a, r in zip(at, inside, rest, strict=True):
        text = f"{a:.1f} of {a + r:.1f} ms, {a / (a + r):.0%}"
        ax.annotate(text, (a + r, y), (6, 0), textcoords="offset points", va="center")
    ax.set_yticks(at, [label(row.method) for row in rows])
    ax.set_xlabel("milliseconds")
    ax.set_xlim(0, 1.35 * float((inside + rest).max()))
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return svg(figure, "time inside attention and outside, by method")


def heat(kept: Sequence[Kept]) -> str:
    """A heat map for each method, all on one colour scale."""
    layers, heads = len(kept[0].mass), len(kept[0].mass[0])
    columns = min(len(kept), 3)
    rows = -(-len(kept) // columns)
    height = rows * (0.9 + 2.6 * min(1.6, max(0.5, layers / max(heads, 1))))
    figure, axes = new_figure(9.0, height, rows, columns)
    low = min(value for entry in kept for layer in entry.mass for value in layer)
    flat = np.atleast_1d(axes).ravel()
    mesh = None
    for ax, entry in zip(flat, kept, strict=False):
        mesh = ax.pcolormesh(np.array(entry.mass), vmin=low, vmax=1, cmap="viridis")
        ax.invert_yaxis()
        ax.set_title(label(entry.method))
        step_y, step_x = -(-layers // 8), -(-heads // 8)
        ax.set_yticks(np.arange(0, layers, step_y) + 0.5, [str(i + 1) for i in range(0, layers, step_y)])
        ax.set_xticks(np.arange(0, heads, step_x) + 0.5, [str(i + 1) for i in range(0, heads, step_x)])
        ax.set_xlabel("head")
        ax.tick_params(length=0)
    flat[0].set_ylabel("layer")
    for ax in flat[len(kept) :]:
        ax.set_axis_off()
    if mesh is not None:
        figure.colorbar(mesh, ax=list(flat[: len(kept)]), label="kept mass", pad=0.02)
    return svg(figure, "kept mass by layer and head, one map a method")


def _colors(methods: Sequence[str]) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(methods))]
