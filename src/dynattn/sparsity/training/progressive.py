"""Progressive gradient flow: from dense to N:M weights in steps so small that gradients still reach all of them.

    W̃ = W ∘ (E + D(t) (1 - E)),  t: steps since the dense phase

    linear         D = max(1 - β t, 0)
    exponential    D = exp(-η t)
    stepwise       D = 0, in equal frames (M-1):M, then M/2:M, M/4:M, … to N:M
    geometric      D = 0, in four equal frames 8N:8M, 4N:4M, 2N:2M, N:M

A training has three phases: dense, one of these, and N:M weights with D = 0. Gradients go straight through to all
weights. Reported for high sparsity, 1:8 and more; while D is above 0 nothing could get faster.

Source: "Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers", arXiv:2402.04744 (its MdGf-Linear,
MdGf-Exponential, SdGf-Stepwise and SdGf-Geometric), with its coefficient of 2e-4 a step. How long the phases are is
this project's choice: shares of the steps.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, final

from dynattn.methods import share
from dynattn.sparsity.training.base import Recipe, Stage
from dynattn.sparsity.weights.nm import NMWeights

Schedule = Literal["linear", "exponential", "stepwise", "geometric"]

_PREFIX: dict[Schedule, str] = {
    "linear": "mdgf", "exponential": "mdgf", "stepwise": "sdgf", "geometric": "sdgf"
}  # fmt: skip
_RATE, _DENSE, _HARD = 2e-4, 0.1, 0.2
_NAME = re.compile(
    rf"(?P<schedule>mdgf-linear|mdgf-exponential|sdgf-stepwise|sdgf-geometric)-(?P<n>\d+)-(?P<m>\d+)"
    rf"(?:-r(?P<rate>{share.NUMBER}))?(?:-d(?P<dense>{share.NUMBER}))?(?:-h(?P<hard>{share.NUMBER}))?"
)


@final
@dataclass(frozen=True)
class Progressive(Recipe):
    """Train dense, then with less and less of the weights that will go, then with N:M weights.

    Args:
        n: how many weights of each group are left in the end.
        m: how many a group has.
        schedule: how the second phase goes.
        rate: β or η, of each step. Few steps need a larger one than the published one: 5 / steps takes D to 0.007.
        dense: the share of the steps in the first phase.
        hard: the share of the steps in the last one.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: n is not from 1 to m, a number is out of its range, or the frames do not halve M down to N.
    """

    n: int
    m: int
    schedule: Schedule = "exponential"
    rate: float = _RATE
    dense: float = _DENSE
    hard: float = _HARD

    def __post_init__(self) -> None:
        NMWeights(self.n, self.m)
        if self.schedule not in _PREFIX:
            raise ValueError(f"Progressive: schedule must be one of {', '.join(_PREFIX)}: got {self.schedule!r}")
        for field in ("rate", "dense", "hard"):
            if not isinstance(getattr(self, field), float):
                raise TypeError(f"Progressive: {field} must be a float: got {getattr(self, field)!r}; leave it out")
        if not 0 <= self.rate <= 1e6:
            raise ValueError(f"Progressive: rate must be from 0 to 1e6: got {self.rate}; {_RATE} is usual")
        if not (self.dense >= 0 and self.hard >= 0 and self.dense + self.hard <= 1):
            raise ValueError(
                f"Progressive: dense and hard must be shares of the steps: got {self.dense} and {self.hard}; "
                f"{_DENSE} and {_HARD} leave {1 - _DENSE - _HARD:.1f} between them"
            )
        if self.schedule == "stepwise" and not self._halves():
            raise ValueError(
                f"Progressive: stepwise frames must halve m down to n: got {self.n}:{self.m}; try 1:8 or 2:4, or "
                "another schedule"
            )

    @property
    def name(self) -> str:
        """``mdgf-exponential-N-M``, ``sdgf-stepwise-N-M``, …, with ``-rRATE``, ``-dDENSE`` and ``-hHARD`` where they
        are not the defaults."""
        given = (("r", self.rate, _RATE), ("d", self.dense, _DENSE), ("h", self.hard, _HARD))
        rest = "".join(f"-{letter}{share.text(value)}" for letter, value, default in given if value != default)
        return f"{_PREFIX[self.schedule]}-{self.schedule}-{self.n}-{self.m}{rest}"

    @classmethod
    def from_name(cls, name: str) -> Progressive | None:
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        schedule: Schedule = match["schedule"].partition("-")[2]  # type: ignore[assignment]
        numbers = (
            default if match[field] is None else float(match[field])
            for field, default in (("rate", _RATE), ("dense", _DENSE), ("hard", _HARD))
        )
        return cls(int(match["n"]), int(match["m"]), schedule, *numbers)

    def stage(self, step: int, steps: int | None) -> Stage:
        if steps is None:
            raise ValueError("Progressive: steps must say how long the training will be: got None; pass train(steps=…)")
        start, end = round(self.dense * steps), steps - round(self.hard * steps)
        if step < start:
            return Stage(self.n, self.m, 1.0)
        if step >= end:
            return Stage(self.n, self.m)
        if self.schedule == "linear":
            return Stage(self.n, self.m, max(1 - self.rate * (step - start), 0.0))
        if self.schedule == "exponential":
            return Stage(self.n, self.m, math.exp(-self.rate * (step - start)))
        frames = self._frames()
        n, m = frames[len(frames) * (step - start) // (end - start)]
        return Stage(n, m)

    def _frames(self) -> list[tuple[int, int]]:
        if self.schedule == "geometric":
            return [(self.n * factor, self.m * factor) for factor in (8, 4, 2, 1)]
        halvings = (self.m // self.n).bit_length() - 1
        return [(self.m - 1, self.m), *((self.m >> i, self.m) for i in range(1, halvings + 1))]

    def _halves(self) -> bool:
        factor, rest = divmod(self.m, self.n)
        return rest == 0 and factor > 1 and factor & (factor - 1) == 0
