"""Block attention by mass: each block of queries keeps as many blocks of keys as an estimated share of attention takes.

    kept(i, j) ⇔ block J of j holds a key near the queries of I or one of the first keys, or is among the best of the
                 others by value(I, J), the fewest with which Σ_{J kept} softmax_J value(I, J) >= mass

Heads and rows whose attention is sharp keep few blocks; those whose attention is flat keep many.

Source: cumulative thresholds over block estimates, XAttention, arXiv:2503.16428, and SpargeAttention, arXiv:2502.18137.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.methods import share
from dynattn.methods.base import BlockRule
from dynattn.methods.blocks import OPTIONS, EstimatedBlocks
from dynattn.methods.registry import register

_NAME = re.compile(rf"blockmass-(?P<mass>{share.NUMBER})-b(?P<block>\d+){OPTIONS}")


@final
@register
@dataclass(frozen=True)
class BlockMass(EstimatedBlocks):
    """Keep, for every block of queries, blocks of keys until their estimated share of the attention reaches ``mass``.

    Ties go to the lower block. All allowed pairs of a kept block are kept. The forced blocks count towards the mass. A
    row of blocks with a value that is NaN or infinite keeps all its blocks, so that the value reaches the output.

    Args:
        mass: the share, a float above 0, at most 1 (which is dense attention).
        block: queries and keys in a block, between 1 and 1024.
        by: what estimates the share: as :class:`~dynattn.BlockTopK` has it.
        window, sinks: blocks that are kept in any case: as :class:`~dynattn.BlockTopK` has them.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.

    Source: arXiv:2503.16428.
    """

    mass: float
    block: int = 16
    by: str = "sampled"
    window: int | None = None
    sinks: int = EstimatedBlocks.default_sinks

    def __post_init__(self) -> None:
        share.check("BlockMass", self.mass, "mass")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``blockmass-0.9-b16-sampled``, with ``-wWINDOW`` and ``-sSINKS`` where they differ from the defaults."""
        return f"blockmass-{share.text(self.mass)}{self.options()}"

    @property
    def keeps_everything(self) -> bool:
        """True where the mass is 1."""
        return self.mass == 1

    @classmethod
    def from_name(cls, name: str) -> BlockMass | None:
        """The method that ``name`` stands for, or None where it is not a name of this method."""
        match = _NAME.fullmatch(name)
        if not match:
            return None
        sizes = {key: int(match[key]) for key in ("window", "sinks") if match[key]}
        return cls(float(match["mass"]), int(match["block"]), match["by"] or "mean", **sizes)

    def best(self, value: Tensor, others: Tensor, forced: Tensor) -> Tensor:
        """The largest values, until the mass is reached."""
        if self.keeps_everything:
            return others  # shares that round to 0 are a part of the mass too
        weights = value.masked_fill(~(others | forced), -math.inf).softmax(-1)
        ranked = weights.masked_fill(~others, -1.0).sort(dim=-1, descending=True, stable=True)
        before = weights.where(forced, 0.0).sum(-1, keepdim=True) + ranked.values.cumsum(-1) - ranked.values
        kept = others.scatter(-1, ranked.indices, before < self.mass)
        return kept | weights.isnan()

    def _ranked(self, forced: BlockRule) -> BlockRule:
        return forced._replace(mass=self.mass)
