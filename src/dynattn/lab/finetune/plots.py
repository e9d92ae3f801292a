"""Figures of a study."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np

from dynattn.lab.page import COLORS, new_figure, svg
from dynattn.lab.training.results import Study
from dynattn.lab.words import label

STANDING_CAPTION = (
    "Left: the score of each method, with a dot for each seed. Right: its difference to dense attention, paired, with "
    "95% intervals: to the untrained one where nothing was trained, else to the trained one. A bar that crosses the "
    "line is no difference that these seeds and items can tell from noise."
)
CURVES_CAPTION = (
    "Left: training loss, mean over the seeds, a running mean over the last steps. Right: score on the held-out items, "
    "a thin line a seed and a thick one for their mean; at step 0 the model without training, where it has a score."
)
_GREY = "#8a8f98"
_STATES = (
    (0.22, False, False, _GREY, "without training"),
    (0.0, True, True, COLORS[1], "dense trained, swapped in"),
    (-0.22, True, False, COLORS[0], "trained"),
)
"""Height, whether trained, whether swapped in, colour and name."""
_SMOOTH = 10  # the running mean of the loss is over one of so many parts of all steps, a tenth


def standing(found: Study) -> str:
    """Scores, and differences to dense: without training, swapped in, trained."""
    figure, axes = new_figure(9.0, 1.2 + 0.65 * len(found.methods), 1, 2)
    left, right = axes
    names = [label(method) for method in found.methods]
    right.axvline(0, color=_GREY, linewidth=0.8)
    for shift, is_trained, is_swapped, color, name in _STATES:
        drawn = False
        for y, method in enumerate(reversed(found.methods)):
            arm = found.of(method, is_trained, is_swapped)
            if arm is None:
                continue
            title = None if drawn else name
            drawn = True
            left.plot(arm.score.by_seed, [y + shift] * len(arm.runs), ".", color=color, alpha=0.6)
            left.plot(arm.score.mean, y + shift, "D", color=color, label=title)
            difference = arm.difference
            if difference is not None:
                bars = None
                if difference.low is not None and difference.high is not None:
                    bars = [[difference.mean - difference.low], [difference.high - difference.mean]]
                right.errorbar(difference.mean, y + shift, xerr=bars, fmt="D", color=color, capsize=3)
    for ax in axes:
        ax.set_ylim(-0.5, len(names) - 0.5)
    left.set_yticks(range(len(names)), reversed(names))
    right.set_yticks([])
    left.set_xlabel(found.metric)
    right.set_xlabel("difference to dense")
    for ax in axes:
        ax.locator_params(axis="x", nbins=5)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return svg(figure, "score and difference to dense by method, without training, swapped in and trained")


def curves(found: Study) -> str:
    """Training loss and held-out score against steps."""
    figure, (left, right) = new_figure(9.0, 3.4, 1, 2)
    for method, color in zip(found.methods, cycle(COLORS), strict=False):
        arm, before = found.of(method, trained=True), found.of(method, trained=False)
        if arm is None:
            continue
        losses = np.array([[point.value for point in run.losses] for run in arm.runs]).mean(0)
        steps = [point.step for point in arm.runs[0].losses]
        width = max(1, len(steps) // _SMOOTH)
        left.plot(steps, _running(losses, width), color=color, label=label(method))
        start = [(0, before.score.mean)] if before else []
        lines = [np.array(start + [(point.step, point.value) for point in run.curve]) for run in arm.runs]
        for line in lines:
            right.plot(line[:, 0], line[:, 1], color=color, linewidth=0.7, alpha=0.5)
        mean = np.mean(lines, axis=0)
        right.plot(mean[:, 0], mean[:, 1], "o-", color=color, linewidth=2, markersize=4)
    _axes(left, "training loss")
    _axes(right, found.metric)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return svg(figure, "training loss and held-out score against steps, by method")


def _axes(ax: Any, name: str) -> None:
    ax.set_xlabel("steps")
    ax.set_ylabel(name)
    ax.set_xlim(left=0)


def _running(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of each value and up to ``width`` − 1 before it."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
