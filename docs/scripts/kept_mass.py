"""Draws docs/images/kept_mass.svg and prints the table of docs/theory.md, both from dynattn.theory alone.

python docs/scripts/kept_mass.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from dynattn import NM, theory
from dynattn.lab.page import COLORS, new_figure

IMAGE = Path(__file__).parents[1] / "images" / "kept_mass.svg"
CHOICES = {
    "top 50%": 0.5,
    "4:8": NM(4, 8),
    "2:4": NM(2, 4),
    "1:2": NM(1, 2),
    "top 25%": 0.25,
    "1:4": NM(1, 4),
}


def expected(choice: NM | float, sigma: Tensor) -> Tensor:
    return theory.kept_mass(choice, sigma) if isinstance(choice, NM) else theory.top_kept_mass(choice, sigma)


def draw() -> None:
    sigma = torch.linspace(0, 4, 161, dtype=torch.float64)
    figure, axes = new_figure(7.0, 4.2)
    for index, (name, choice) in enumerate(CHOICES.items()):
        quarter = choice in (0.25, NM(1, 4))
        style = {"color": COLORS[(index - 4) * 2 if quarter else index], "ls": "--" if quarter else "-", "lw": 1.6}
        axes.plot(sigma.numpy(), expected(choice, sigma).numpy(), label=name, **style)
    for ratio in (0.5, 0.25):
        axes.axhline(ratio, color=COLORS[5], lw=1, ls=":", label="random choice, worst case" if ratio == 0.5 else None)
    axes.set(
        xlabel="σ, standard deviation of a row's scores", ylabel="expected kept mass", xlim=(0, 4), ylim=(0.2, 1.01)
    )
    axes.legend(loc="lower right")
    IMAGE.parent.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "dynattn", "svg.fonttype": "path"}):  # the same bytes each time
        figure.savefig(IMAGE, facecolor="white", metadata={"Date": None})


def table() -> str:
    sigmas = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    rows = [("σ", *map(str, sigmas)), ("---",) * (len(sigmas) + 1)]
    for name, choice in CHOICES.items():
        rows.append((name, *(f"{float(expected(choice, torch.tensor(s))):.3f}" for s in sigmas)))
    rows.append(("error ε, 2:4", *(f"{float(theory.output_error(NM(2, 4), s)):.3f}" for s in sigmas)))
    rows.append(("error ε, 1:2", *(f"{float(theory.output_error(NM(1, 2), s)):.3f}" for s in sigmas)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    draw()
    print(table())
