"""Draws one inspection. Weights are drawn as ink of varying opacity, so that a drawing fits light and dark pages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynattn import theory
from dynattn.lab.inspect.measure import Head, Maps
from dynattn.lab.inspect.subject import Subject
from dynattn.lab.page import COLORS, new_figure
from dynattn.methods.nm import NM

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

_LABELLED = 40  # a map of up to so many tokens has a label for each
_ZOOM = 32
_CELLS = 192  # longer maps are averaged so that they have at most so many cells on each side
_CELL_TEXT = "#0d1117"  # not black: black follows the page's text colour, and this stands on a coloured cell
_DENSE, _KEPT, _LOST = COLORS[0], COLORS[2], COLORS[4]


def kept_mass_grid(heads: list[Head]) -> Figure:
    """Kept mass of each layer (down) and head (across)."""
    layers = sorted({h.layer for h in heads})
    width = 1 + max(h.head for h in heads)
    grid = torch.full((len(layers), width), torch.nan, device="cpu")
    for h in heads:
        grid[layers.index(h.layer), h.head] = h.kept_mass
    figure, axes = new_figure(7.0, 1.0 + 0.3 * len(layers))
    image = axes.imshow(grid.numpy(), aspect="auto", cmap="YlGnBu_r", vmax=1.0, interpolation="nearest")
    low, high = image.get_clim()
    for (row, column), value in ((index, float(grid[index])) for index in _indices(grid)):
        dark = value < low + 0.45 * (high - low)
        axes.text(column, row, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=8,
                  color="#f5f7fa" if dark else _CELL_TEXT)  # fmt: skip
    axes.set_xticks(range(width))
    axes.set_yticks(range(len(layers)), layers)
    axes.set(xlabel="head", ylabel="layer")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def theory_plots(heads: list[Head], method: NM) -> Figure:
    """Kept mass against sigma with the theory's curves, and measured against predicted."""
    figure, (left, right) = new_figure(9.0, 3.9, columns=2)
    density = sum(h.density for h in heads) / len(heads)
    sigmas = [h.sigma for h in heads]
    measured = [h.kept_mass for h in heads]
    low, high = (max(end, 1e-2) for end in (min(sigmas), max(sigmas)))  # the scores of one token have no spread
    sigma = torch.logspace(math.log10(0.8 * low), math.log10(1.2 * high), 120, device="cpu").double()
    plain = NM(method.n, method.m)
    top, choice = theory.top_kept_mass(min(density, 1.0), sigma), theory.kept_mass(plain, sigma)
    left.plot(sigma.numpy(), top.numpy(), color=COLORS[2], label=f"top {density:.0%}, theory", lw=1.4)
    left.plot(sigma.numpy(), choice.numpy(), color=COLORS[0], label=f"{method.n}:{method.m}, theory", lw=1.4)
    left.axhline(density, color=COLORS[5], ls="--", label="random choice", lw=1.2)
    left.plot(sigmas, measured, "o", color=COLORS[1], ms=4, alpha=0.8, mew=0, label="heads, measured")
    left.set(xlabel="σ: standard deviation of the head's scores", ylabel="kept mass", xscale="log")
    left.xaxis.set_major_formatter("{x:g}")
    left.set_ylim(min(density, plain.n / plain.m, *measured) - 0.03, 1.02)
    left.legend(loc="lower right", bbox_to_anchor=(1.0, 0.1), fontsize=8, frameon=False)

    predicted = [h.predicted for h in heads]
    shuffled = [h.shuffled for h in heads]
    ends = [min(*predicted, *measured, *shuffled) - 0.02, 1.01]
    right.plot(ends, ends, color=COLORS[5], lw=1, ls="--")
    right.plot(predicted, shuffled, "o", ms=4.5, mfc="none", color=COLORS[0], alpha=0.8, label="keys shuffled")
    right.plot(predicted, measured, "o", color=COLORS[1], ms=4, alpha=0.8, mew=0, label="as the model has them")
    right.set(xlabel="kept mass the theory expects", ylabel="kept mass measured", xlim=ends, ylim=ends)
    right.legend(loc="upper left", fontsize=8, frameon=False)
    return figure


def attention_maps(found: Maps, subject: Subject) -> Figure:
    """One head's weights: dense, kept, dropped. Long ones block by block."""
    q_len, kv_len = found.dense.shape
    dropped = found.dense.masked_fill(found.kept, 0.0)
    block = -(-max(q_len, kv_len) // _CELLS)
    panels = [
        (_averaged(x, block), title, color)
        for x, title, color in (
            (found.dense, "dense", _DENSE), (found.dense - dropped, "kept", _KEPT), (dropped, "dropped", _LOST),
        )
    ]  # fmt: skip
    labels = subject.labels if max(q_len, kv_len) <= _LABELLED else None
    return _map_row(panels, labels, (0, kv_len, q_len, 0))


def zoomed_maps(found: Maps, subject: Subject) -> Figure:
    """The square of 32 queries and keys around the diagonal that loses most, token by token."""
    dropped = found.dense.masked_fill(found.kept, 0.0)
    starts = range(0, min(dropped.shape) - _ZOOM + 1, _ZOOM)
    start = max(starts, key=lambda at: float(dropped[at : at + _ZOOM, at : at + _ZOOM].sum()))
    part = slice(start, start + _ZOOM)
    panels = [
        (found.dense[part, part], "dense", _DENSE),
        ((found.dense - dropped)[part, part], "kept", _KEPT),
        (dropped[part, part], "dropped", _LOST),
    ]
    return _map_row(panels, subject.labels[part], (0, _ZOOM, _ZOOM, 0))


def needs_zoom(found: Maps) -> bool:
    """Whether the map is too long for a label at each token."""
    return max(found.dense.shape) > _LABELLED and min(found.dense.shape) >= _ZOOM


def overlays(found: Maps, subject: Subject, image: np.ndarray, grid: tuple[int, int]) -> Figure:
    """On the image: where one patch looks, dense and kept, and what all patches together lose of each key."""
    rows, columns = grid
    query = (rows // 2) * columns + columns // 2
    dense, sparse = found.dense[subject.prefix + query], found.sparse[subject.prefix + query]
    dropped = found.dense.masked_fill(found.kept, 0.0).sum(0)
    figure, axes = new_figure(9.0, 3.3, columns=3)
    top = float(dense[subject.prefix :].max())
    height, width = image.shape[:2]
    for ax, weights, title, color, largest in (
        (axes[0], dense, "dense attention of one patch", _DENSE, top),
        (axes[1], sparse, "the same, after dropping", _KEPT, top),
        (axes[2], dropped, "attention that keys lose", _LOST, float(dropped[subject.prefix :].max())),
    ):
        ax.imshow(image.mean(-1) * 0.6 + 0.2, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
        patches = weights[subject.prefix :].view(rows, columns)
        _ink(ax, patches, color, largest, (0, width, height, 0))
        ax.set_title(title)
        ax.axis("off")
    step = width / columns
    for ax in axes[:2]:
        ax.plot((query % columns + 0.5) * step, (query // columns + 0.5) * step, "s", ms=7, mfc="none", mec="#ffd24d")
    return figure


def _map_row(panels: list[tuple[Tensor, str, str]], labels: tuple[str, ...] | None, extent: tuple) -> Figure:
    figure, axes = new_figure(9.6, 3.9 if labels else 3.8, columns=len(panels))
    largest = float(panels[0][0].flatten().quantile(0.999) if panels[0][0].numel() < 2**24 else panels[0][0].max())
    for index, (ax, (weights, title, color)) in enumerate(zip(axes, panels, strict=True)):
        _ink(ax, weights, color, largest, extent)
        ax.set_title(title)
        ax.tick_params(length=0, labelsize=5 if labels else 8)
        for spine in ax.spines.values():
            spine.set(visible=True, linewidth=0.5, color=COLORS[5])
        if labels:
            at = [i + 0.5 for i in range(len(labels))]
            shown = [label.replace("$", r"\$") for label in labels]  # not TeX
            ax.set_xticks(at, shown, rotation=90)
            ax.set_yticks(at, shown if index == 0 else [""] * len(at))
        elif index:
            ax.set_yticks([])
        if not labels:
            ax.set(xlabel="key", ylabel="query" if index == 0 else "")
    return figure


def _ink(ax: Any, weights: Tensor, color: str, largest: float, extent: tuple) -> None:
    """Draw weights as opacity of one colour, by their square root, so that small ones are seen."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb

    ink = LinearSegmentedColormap.from_list("ink", [(*to_rgb(color), 0.0), (*to_rgb(color), 1.0)])
    norm = PowerNorm(0.5, vmin=0.0, vmax=largest or 1.0, clip=True)
    ax.imshow(weights.numpy(), cmap=ink, norm=norm, extent=extent, aspect="equal", interpolation="nearest")


def _averaged(x: Tensor, block: int) -> Tensor:
    """Mean over blocks of ``block`` by ``block``; a part at the end counts its own entries only."""
    if block == 1:
        return x
    return torch.nn.functional.avg_pool2d(x[None, None], block, ceil_mode=True, count_include_pad=False)[0, 0]


def _indices(grid: Tensor) -> list[tuple[int, int]]:
    return [(int(i), int(j)) for i, j in grid.isfinite().nonzero()]
