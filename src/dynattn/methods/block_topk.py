"""Block top-k attention: each block of queries keeps the blocks of keys with the largest mean scores.

    score(I, J) = mean of s_ij over the allowed pairs i ∈ I, j ∈ J
    kept(i, j)  ⇔ score(I, J) among the ⌈ratio · blocks of row I with an allowed pair⌉ largest of row I

I and J are blocks of B consecutive queries and keys, ``[0, B), [B, 2B), …``. Where all pairs are allowed and no bias is
added, the mean score is the product of the pooled vectors, ``scale · mean(q_I) · mean(k_J)``, which costs 1/B² of the
scores; with a mask the mean is of what may be attended, where published kernels pool over masked pairs too.

Source: the block-sparse head of MInference, arXiv:2407.02490; pooled scores also in SpargeAttention, arXiv:2502.18137.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.maths import pooled
from dynattn.maths.selection import largest
from dynattn.methods import share
from dynattn.methods.base import Glance, PairMethod, Rows
from dynattn.methods.registry import register

_NAME = re.compile(rf"blocktopk-(?P<ratio>{share.NUMBER})-b(?P<block>\d+)")
_MAX_BLOCK = 1024
_LEAST_WHOLE = 8  # a byte for every block of 8 x 8 pairs is no more than queries and keys take at length 64k


@final
@register
@dataclass(frozen=True)
class BlockTopK(PairMethod):
    """Keep, for every block of queries, a share of the blocks of keys, by their mean score.

    Ties go to the lower block. All allowed pairs of a kept block are kept. A query whose allowed keys all lie in
    dropped blocks gives 0; join a :class:`~dynattn.Window` with ``+`` where masks can bring that about.

    Blocks of queries are counted from the first query of the call, blocks of keys from key 0.

    Args:
        ratio: share of the blocks that have an allowed pair, a float above 0, at most 1 (which is dense attention).
        block: queries and keys in a block, between 1 and 1024.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.

    Source: arXiv:2407.02490.
    """

    ratio: float
    block: int = 16

    def __post_init__(self) -> None:
        share.check("BlockTopK", self.ratio)
        if not isinstance(self.block, int) or isinstance(self.block, bool):
            raise TypeError(f"BlockTopK: block must be an int: got {self.block!r}; try BlockTopK(0.25, 16)")
        if not 1 <= self.block <= _MAX_BLOCK:
            raise ValueError(f"BlockTopK: block must be between 1 and {_MAX_BLOCK}: got {self.block}; try 16 or 64")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``blocktopk-0.25-b16``."""
        return f"blocktopk-{share.text(self.ratio)}-b{self.block}"

    @property
    def keeps_everything(self) -> bool:
        """True where the share is 1."""
        return self.ratio == 1

    @classmethod
    def from_name(cls, name: str) -> BlockTopK | None:
        """The method that ``name`` stands for, or None where it is not a block top-k name."""
        match = _NAME.fullmatch(name)
        return cls(float(match["ratio"]), int(match["block"])) if match else None

    @property
    def rows_together(self) -> int:
        """The block."""
        return self.block

    def glance(self, head_dim: int, itemsize: int) -> Glance:
        """Pooled queries times pooled keys."""
        return Glance(head_dim / self.block**2, head_dim * itemsize / self.block)

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The blocks with the largest mean scores, each with all its pairs."""
        length, kv_len = scores.shape[-2:]
        kept = self.best(*pooled.of_scores(scores, self.block))
        return kept.repeat_interleave(self.block, -2).repeat_interleave(self.block, -1)[..., :length, :kv_len]

    @property
    def whole_blocks(self) -> int:
        """The block, from 8 on."""
        return self.block if self.block >= _LEAST_WHOLE else 0

    def choose_blocks(self, query: Tensor, key: Tensor, attn_mask: Tensor | None, causal: bool, scale: float) -> Tensor:
        """The blocks with the largest mean scores, by pooled queries and keys."""
        rows, columns = (-(-x.shape[2] // self.block) for x in (query, key))
        kept = query.new_empty((*query.shape[:2], rows, columns), dtype=torch.bool)
        for at, mean, some in pooled.means(query, key, attn_mask, causal, scale, self.block):
            kept[:, :, at] = self.best(mean, some.expand_as(mean))
        return kept

    def best(self, mean: Tensor, some: Tensor) -> Tensor:
        """The blocks kept of every row of blocks.

        Args:
            mean: (..., blocks of keys), mean score of the allowed pairs.
            some: same shape, whether a pair is allowed.

        Returns:
            bool, same shape.
        """
        return largest(mean.masked_fill(~some, -math.inf), share.ceil(self.ratio, some.sum(-1))) & some
