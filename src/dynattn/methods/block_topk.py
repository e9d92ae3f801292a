"""Block top-k attention: each block of queries keeps a share of the blocks of keys, those near, and the best of others.

    kept(i, j) ⇔ block J of j holds a key near the queries of I or one of the first keys,
                 or value(I, J) is among the largest of the others,
                 ⌈ratio · blocks of row I with an allowed pair⌉ blocks in all, at least ⌈floor / B⌉

I and J are blocks of B consecutive queries and keys, ``[0, B), [B, 2B), …``. By default the value is the mean score of
the allowed pairs: where all pairs are allowed and no bias is added, the product of the pooled vectors,
``scale · mean(q_I) · mean(k_J)``, which costs 1/B² of the scores; with a mask the mean is of what may be attended,
where published kernels pool over masked pairs too.

Source: the block-sparse head of MInference, arXiv:2407.02490; pooled scores also in SpargeAttention, arXiv:2502.18137.
First, own and nearest block forced: The Sparse Frontier, arXiv:2504.17768.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.maths.selection import largest
from dynattn.methods import share
from dynattn.methods.base import BlockRule
from dynattn.methods.blocks import OPTIONS, EstimatedBlocks
from dynattn.methods.registry import register

_NAME = re.compile(rf"blocktopk-(?P<ratio>{share.NUMBER})-b(?P<block>\d+){OPTIONS}{share.FLOOR}")


@final
@register
@dataclass(frozen=True)
class BlockTopK(EstimatedBlocks):
    """Keep, for every block of queries, a share of the blocks of keys: those near and the first, then by an estimate.

    Ties go to the lower block. All allowed pairs of a kept block are kept. The forced blocks count towards the share; a
    row keeps more than its share only where it has more forced blocks than that. Without a window, a query whose
    allowed keys all lie in dropped blocks gives 0.

    Blocks of queries are counted from the first query of the call, blocks of keys from key 0.

    Args:
        ratio: share of the blocks that have an allowed pair, a float above 0, at most 1 (which is dense attention).
        block: queries and keys in a block, between 1 and 1024.
        by: what ranks the blocks that are not forced: ``mean``, the mean score; ``similar``, the same, of blocks whose
            queries and keys are alike, and all others are forced; ``sampled``, the exact attention of
            every 16th query; ``runs``, the attention of the mean query of every run of 16; ``lowrank``, the scores of
            all pairs in an eighth of the dimensions; ``bounds``, upper bounds of the scores; ``antidiagonal``, scores
            along antidiagonals, for which the block must be a multiple of 16.
        window: a block is always kept that holds a key less than so many positions from one of the queries. None stands
            for ``block``, which keeps the queries' own block and its neighbours; 0 for no window.
        sinks: a block is always kept that holds one of the first so many keys; 0 for none.
        floor: a row of blocks keeps at least ⌈floor / block⌉, where it has as many; 0 for no floor.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.

    Source: arXiv:2407.02490; see the estimates' files for theirs.
    """

    ratio: float
    block: int = 16
    by: str = "mean"
    window: int | None = None
    sinks: int = EstimatedBlocks.default_sinks
    floor: int = share.DEFAULT_FLOOR

    def __post_init__(self) -> None:
        share.check("BlockTopK", self.ratio)
        share.check_floor("BlockTopK", self.floor)
        super().__post_init__()

    @property
    def name(self) -> str:
        """``blocktopk-0.25-b16``, with ``-sampled`` and the like, ``-wWINDOW``, ``-sSINKS``, ``-fFLOOR`` where they
        differ from the defaults."""
        return f"blocktopk-{share.text(self.ratio)}{self.options()}{share.floor_text(self.floor)}"

    @property
    def keeps_everything(self) -> bool:
        """True where the share is 1."""
        return self.ratio == 1

    @classmethod
    def from_name(cls, name: str) -> BlockTopK | None:
        """The method that ``name`` stands for, or None where it is not a block top-k name."""
        match = _NAME.fullmatch(name)
        if not match:
            return None
        sizes = {key: int(match[key]) for key in ("window", "sinks", "floor") if match[key]}
        return cls(float(match["ratio"]), int(match["block"]), match["by"] or "mean", **sizes)

    def best(self, value: Tensor, others: Tensor, forced: Tensor) -> Tensor:
        """The largest values, as many as are left of the budget."""
        taken = forced.sum(-1)
        count = share.ceil(self.ratio, others.sum(-1) + taken).clamp(min=-(-self.floor // self.block))
        return largest(value.masked_fill(~others, -math.inf), (count - taken).clamp(min=0))

    def _ranked(self, forced: BlockRule) -> BlockRule:
        ratio = share.exact(self.ratio)
        floor = -(-self.floor // self.block)
        return forced._replace(floor=floor, numerator=ratio.numerator, denominator=ratio.denominator)
