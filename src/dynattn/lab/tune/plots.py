"""Figures of a tuning."""

from __future__ import annotations

import re

from dynattn.lab.page import COLORS, new_figure, svg
from dynattn.lab.tune.assignment import shares
from dynattn.lab.tune.candidates import DENSE
from dynattn.lab.tune.results import Tuning
from dynattn.lab.words import label

ASSIGNMENT_CAPTION = "The method of each head (columns) of each attention module (rows, the first on top)."
FRONTIER_CAPTION = (
    "Speed-up of the whole model, foretold from the kernels' times, against predicted harm: the energy of the heads' "
    "errors in the residual stream. The path is what the solver walks along; crosses are one method for all heads; "
    "rings were measured whole."
)
TIME_CAPTION = "Seconds inside attention by module, in one forward of the dense model with SDPA."

_DENSE = "#8a8f98"


def assignment(found: Tuning) -> str:
    """A cell for each head, coloured by its method."""
    from matplotlib.patches import Rectangle

    names = [name for name in shares(found.heads) if name != DENSE]
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    modules = list(found.heads)
    most = max(map(len, found.heads.values()))
    figure, axes = new_figure(9.0, max(2.0, 0.24 * len(modules) + 1.0))
    for row, module in enumerate(modules):
        for head, name in enumerate(found.heads[module]):
            axes.add_patch(
                Rectangle((head, row), 0.94, 0.9, facecolor=colors.get(name, "none"), edgecolor=_DENSE, linewidth=0.5)
            )
    axes.set_xlim(0, most)
    axes.set_ylim(len(modules), 0)
    axes.set_yticks(
        [row + 0.45 for row in range(len(modules))], [_short(module, modules) for module in modules], fontsize=7
    )
    axes.set_xlabel("head")
    patches = [Rectangle((0, 0), 1, 1, facecolor=colors[name]) for name in names]
    patches.append(Rectangle((0, 0), 1, 1, facecolor="none", edgecolor=_DENSE))
    figure.legend(patches, [*map(label, names), "dense"], loc="outside right upper")
    return svg(figure, "the method of each head")


def frontier(found: Tuning) -> str:
    """Points considered: predicted harm against predicted speed-up."""
    figure, axes = new_figure(9.0, 3.8)
    path = [each for each in found.considered if each.name == "path"]
    floor = min((each.harm for each in found.considered if each.harm > 0), default=1e-6) / 2
    axes.plot([max(p.harm, floor) for p in path], [p.speedup for p in path], "-", color=COLORS[0], label="path")
    single = [each for each in found.considered if each.name not in ("path", "measured")]
    axes.plot(
        [max(p.harm, floor) for p in single],
        [p.speedup for p in single],
        "x",
        color=COLORS[1],
        label="one method for all",
    )
    measured = [each for each in found.considered if each.name == "measured"]
    axes.plot(
        [max(p.harm, floor) for p in measured],
        [p.speedup for p in measured],
        "o",
        mfc="none",
        color=COLORS[4],
        label="measured",
    )
    for point in measured:
        axes.annotate(
            f"{point.losses[0]:+.2%}",
            (max(point.harm, floor), point.speedup),
            textcoords="offset points",
            xytext=(6, -10),
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set_xlabel("predicted harm")
    axes.set_ylabel("speed-up of the whole model, foretold")
    axes.legend()
    return svg(figure, "predicted harm against speed-up")


def time(found: Tuning) -> str:
    """Seconds of each attention module."""
    modules = list(found.time.modules)
    figure, axes = new_figure(9.0, 2.4)
    axes.bar(range(len(modules)), list(found.time.modules.values()), color=COLORS[0])
    axes.set_xlabel("attention module")
    axes.set_ylabel("seconds")
    return svg(figure, "seconds by attention module")


def _short(module: str, modules: list[str]) -> str:
    """The numbers in a module's name, which tell it from the others; its name where they do not."""
    number = re.findall(r"\d+", module)
    short = ".".join(number)
    return short if number and sum(re.findall(r"\d+", other) == number for other in modules) == 1 else module
