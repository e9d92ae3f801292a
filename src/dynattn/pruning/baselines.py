"""The baselines that every method must beat: tokens kept by chance, and the tokens at the start.

    layer l sees ⌈ratio_l · n⌉ of a sample's n tokens,    ratio_l as in :mod:`dynattn.pruning.schedule`

They look at nothing, so at the same keep ratio no method is faster.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from dynattn.methods import share
from dynattn.pruning.base import NUMBER, Pruning
from dynattn.pruning.course import Course, Decision, Seen, Start, top
from dynattn.pruning.schedule import FRONT, check_ratio, counts, schedule

_NAME = re.compile(rf"(?P<kind>random|first)-tokens-(?P<keep>{NUMBER})(?:-r(?P<seed>\d+))?")


@final
@dataclass(frozen=True)
class RandomTokens(Pruning):
    """Keep tokens by chance.

    Args:
        keep: keep ratio of the last layer, above 0 and at most 1.
        seed: the seed of the choice. Each place among the tokens of a sample has a fixed random rank. So the same
            tokens are dropped in every forward, whatever batch a sample is in.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: the keep ratio is out of its range.
    """

    keep: float
    seed: int = 0
    kind: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        check_ratio("RandomTokens", "keep", self.keep)

    @property
    def name(self) -> str:
        """``random-tokens-KEEP``, with ``-rSEED`` where it is not 0."""
        return f"random-tokens-{share.text(self.keep)}" + (f"-r{self.seed}" if self.seed else "")

    @classmethod
    def from_name(cls, name: str) -> RandomTokens | None:
        match = _NAME.fullmatch(name)
        if match is None or match["kind"] != cls.kind:
            return None
        return cls(float(match["keep"]), int(match["seed"] or 0))

    def course(self, start: Start) -> Course:
        generator = torch.Generator().manual_seed(self.seed)
        ranks = torch.rand(start.alive.shape[1], generator=generator, device="cpu").to(start.alive.device)
        return _Ranked(schedule(self.keep, start.layers, FRONT), start, ranks[start.alive.cumsum(1) - 1])


@final
@dataclass(frozen=True)
class FirstTokens(Pruning):
    """Keep the tokens at the start of each sample: what truncation would leave, but layer by layer.

    Args:
        keep: keep ratio of the last layer, above 0 and at most 1.

    Raises:
        TypeError: the keep ratio is not a number.
        ValueError: it is out of its range.
    """

    keep: float
    kind: ClassVar[str] = "first"

    def __post_init__(self) -> None:
        check_ratio("FirstTokens", "keep", self.keep)

    @property
    def name(self) -> str:
        """``first-tokens-KEEP``."""
        return f"first-tokens-{share.text(self.keep)}"

    @classmethod
    def from_name(cls, name: str) -> FirstTokens | None:
        match = _NAME.fullmatch(name)
        return cls(float(match["keep"])) if match and match["kind"] == cls.kind and match["seed"] is None else None

    def course(self, start: Start) -> Course:
        places = torch.arange(start.alive.shape[1], 0, -1, device=start.alive.device)
        return _Ranked(schedule(self.keep, start.layers, FRONT), start, places.expand(start.alive.shape).float())


class _Ranked(Course):
    """Keeps tokens by a rank that does not depend on their states."""

    def __init__(self, ratios: tuple[float, ...], start: Start, ranks: Tensor) -> None:
        self.ratios = ratios
        self.ranks = ranks  # [batch, length]; tokens of higher rank go on
        self.total = start.alive.sum(1)

    def after(self, seen: Seen) -> Decision:
        if seen.layer + 1 == len(self.ratios) or self.ratios[seen.layer + 1] == 1:
            return Decision()
        count = counts(self.ratios[seen.layer + 1], self.total)
        return Decision(top(self.ranks.gather(1, seen.position), seen, count))
