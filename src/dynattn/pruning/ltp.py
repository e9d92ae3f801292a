r"""Learned token pruning: a token goes on while it receives enough attention.

    importance_j = 1 / (heads · n) · Σ_h Σ_i P_hij            n: tokens left
    hard         j goes on from layer l  ⇔  importance_j > θ_l
    soft         M_lj = sigmoid((importance_j - θ_l) / T),    layer output ∘ M_l,    loss = task + λ · mean_l,j M_lj

How many tokens go on depends on the input, and nothing is sorted. Thresholds are learnt with the soft mask by
:mod:`dynattn.pruning.learn`; then they are fixed, and the hard rule uses them. The importances of n tokens are 1/n in
the mean, so thresholds fit the lengths that they were learnt on.

Source: arXiv:2107.00910, KDD 2022. One threshold for all layers, rising in proportion to the layer up to the last, is
how the authors' published code starts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.methods import share
from dynattn.pruning.base import NUMBER, Pruning
from dynattn.pruning.course import Attended, Course, Decision, Seen, Start
from dynattn.pruning.importance import received

_NAME = re.compile(rf"ltp-({NUMBER}(?:-{NUMBER})*)")


@final
@dataclass(frozen=True)
class LTP(Pruning):
    """Keep a token while its importance is above a threshold.

    Args:
        thresholds: one for each layer; or a single θ, which stands for ``θ_l = θ · l / layers`` with l counted from 1.
            They are at least 0. With 0, only tokens that receive no attention at all are pruned.

    Raises:
        TypeError: ``thresholds`` is neither a number nor a tuple of numbers.
        ValueError: a threshold is negative or not finite.
    """

    thresholds: tuple[float, ...]

    def __init__(self, thresholds: float | tuple[float, ...]) -> None:
        given = thresholds if isinstance(thresholds, tuple) else (thresholds,)
        if not given or any(not isinstance(t, (int, float)) or isinstance(t, bool) for t in given):
            raise TypeError(f"LTP: thresholds must be a number or a tuple of numbers: got {thresholds!r}; try 0.01")
        if any(not math.isfinite(t) or t < 0 for t in given):
            raise ValueError(f"LTP: thresholds must be finite and at least 0: got {thresholds!r}; try 0.01")
        object.__setattr__(self, "thresholds", tuple(float(t) for t in given))

    @property
    def name(self) -> str:
        """``ltp-THRESHOLD``, or ``ltp-`` and the thresholds of all layers."""
        return "ltp-" + "-".join(map(share.text, self.thresholds))

    @classmethod
    def from_name(cls, name: str) -> LTP | None:
        match = _NAME.fullmatch(name)
        return cls(tuple(map(float, match[1].split("-")))) if match else None

    def of_layers(self, layers: int) -> tuple[float, ...]:
        """The threshold of each layer.

        Args:
            layers: the number of layers of the model.

        Raises:
            ValueError: the method has thresholds for another number of layers.
        """
        if len(self.thresholds) == 1:
            return tuple(self.thresholds[0] * (i + 1) / layers for i in range(layers))
        if len(self.thresholds) != layers:
            raise ValueError(
                f"LTP: there must be one threshold for each layer: the model has {layers}, the method "
                f"{len(self.thresholds)}; learn them on this model, or give one"
            )
        return self.thresholds

    def course(self, start: Start) -> Course:
        return _Hard(self.of_layers(start.layers))


class Watching(Course):
    """Notes the mean attention probability of each token. The courses with hard and with soft masks share it.

    Attributes:
        importance: the importances in the layer at work, (batch, tokens left); None before its attention, and in the
            last layer.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.importance: Tensor | None = None

    def attend(self, attended: Attended) -> Tensor:
        self.importance = None
        if attended.layer + 1 == self.layers:  # what the last layer's tokens receive decides nothing
            return attended.run()
        value = attended.value if attended.dense else None
        sums, out = received(attended.query, attended.key, attended.scale, attended.alive, value)
        _, heads, length, _ = attended.query.shape
        tokens = length if attended.alive is None else attended.alive.sum(1, keepdim=True)
        self.importance = sums.sum(1) / (heads * tokens)
        return attended.run() if out is None else out


class _Hard(Watching):
    def __init__(self, thresholds: tuple[float, ...]) -> None:
        super().__init__(len(thresholds))
        self.thresholds = thresholds

    def after(self, seen: Seen) -> Decision:
        if self.importance is None:
            return Decision()
        return Decision(self.importance > self.thresholds[seen.layer])
