"""Weights drawn by chance: a baseline that looks at nothing.

    uniform     every layer keeps the same share
    erk         layer l keeps min(1, c · (in + out) / (in · out)) of its weights, with c such that the total is right

Source: "The Unreasonable Effectiveness of Random Pruning", arXiv:2202.02643, which trains such networks from their
initialisation; the densities are those of ER, arXiv:1707.04780, and ERK, arXiv:1911.11134, which are the same for
linear layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, final

import torch
from torch import Tensor

from dynattn.methods import share
from dynattn.sparsity.weights.base import WeightSparsity
from dynattn.sparsity.weights.calibration import InputStatistics

_NAME = re.compile(rf"randomweight-(?P<keep>{share.NUMBER})(?P<uniform>-uniform)?(?:-r(?P<seed>\d+))?")


@final
@dataclass(frozen=True)
class RandomWeights(WeightSparsity):
    """Keep weights by chance, an exact number of them.

    Args:
        keep: the share of all weights that stay, between 1e-6 and 1.
        seed: the seed of the draw.
        layers: how the share is divided among the layers: ``erk`` or ``uniform``.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.
    """

    keep: float
    seed: int = 0
    layers: Literal["erk", "uniform"] = "erk"

    def __post_init__(self) -> None:
        share.check("RandomWeights", self.keep, "keep")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise TypeError(f"RandomWeights: seed must be an int: got {self.seed!r}")
        if self.seed < 0:
            raise ValueError(f"RandomWeights: seed must not be negative: got {self.seed}")
        if self.layers not in ("erk", "uniform"):
            raise ValueError(f"RandomWeights: layers must be 'erk' or 'uniform': got {self.layers!r}")

    @property
    def name(self) -> str:
        """``randomweight-KEEP``, with ``-uniform`` and ``-rSEED`` where they are not the defaults."""
        uniform = "-uniform" if self.layers == "uniform" else ""
        return f"randomweight-{share.text(self.keep)}{uniform}" + (f"-r{self.seed}" if self.seed else "")

    @classmethod
    def from_name(cls, name: str) -> RandomWeights | None:
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(float(match["keep"]), int(match["seed"] or 0), "uniform" if match["uniform"] else "erk")

    def masks(
        self, weights: Mapping[str, Tensor], statistics: Mapping[str, InputStatistics] | None = None
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        counts = self.counts([(weight.shape[1], weight.shape[0]) for weight in weights.values()])
        found = {}
        for (name, weight), count in zip(weights.items(), counts, strict=True):
            kept = torch.zeros(weight.numel(), dtype=torch.bool, device="cpu")
            kept[torch.randperm(weight.numel(), generator=generator, device="cpu")[:count]] = True
            found[name] = kept.view(weight.shape).to(weight.device)
        return found

    def counts(self, shapes: Sequence[tuple[int, int]]) -> list[int]:
        """How many weights each layer keeps; together exactly the share of all, rounded.

        Args:
            shapes: inputs and outputs of each layer.
        """
        sizes = [inputs * outputs for inputs, outputs in shapes]
        total = round(share.exact(self.keep) * sum(sizes))
        if self.layers == "uniform":
            wanted = [Fraction(total * size, sum(sizes)) for size in sizes]
        else:
            wanted = _erk(shapes, total)
        return _whole(wanted, sizes, total)


def _erk(shapes: Sequence[tuple[int, int]], total: int) -> list[Fraction]:
    """Weights in proportion to inputs plus outputs. Layers that would need more than they have are dense, and the
    others share the rest."""
    dense: set[int] = set()
    while True:
        rest = total - sum(shapes[i][0] * shapes[i][1] for i in dense)
        around = sum(inputs + outputs for i, (inputs, outputs) in enumerate(shapes) if i not in dense)
        factor = Fraction(rest, around) if around else Fraction(0)
        over = {
            i
            for i, (inputs, outputs) in enumerate(shapes)
            if i not in dense and factor * (inputs + outputs) > inputs * outputs
        }
        if not over:
            break
        dense |= over
    return [
        Fraction(inputs * outputs) if i in dense else factor * (inputs + outputs)
        for i, (inputs, outputs) in enumerate(shapes)
    ]


def _whole(wanted: Sequence[Fraction], sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers with the right total: all rounded down, and the largest remainders rounded up."""
    counts = [int(one) for one in wanted]
    room = [i for i in range(len(wanted)) if counts[i] < sizes[i]]
    room.sort(key=lambda i: (counts[i] - wanted[i], i))
    for i in room[: total - sum(counts)]:
        counts[i] += 1
    return counts
