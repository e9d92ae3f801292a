"""Blocks dropped with a proof: each block of queries drops the blocks of keys that cannot hold much of its attention.

    kept(i, j) ⇔ block J of j holds a key near the queries of I or one of the first keys, or J is not among the least of
                 the others by r(I, J), as many as give  Σ_{J dropped} r(I, J) <= (1 - mass) / mass
    r(I, J)     = max_{i ∈ I} n(i, J) · exp(u(i, J)) / Z(i)

u(i, J) is an upper bound of query i's scores with the n(i, J) keys of J that it may attend, and Z(i) the sum of
``exp(s_ij)`` over the forced blocks. What query i loses is at most ``Z(i) · Σ r``, and what it keeps at least ``Z(i)``:
it keeps at least ``mass`` of the dense weights, whatever the keys are.

Source: Quest's bounds, arXiv:2406.10774; the proof is this library's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.maths import proof
from dynattn.maths.estimate import Estimated, Input
from dynattn.methods import share
from dynattn.methods.base import Glance, Rows
from dynattn.methods.blocks import FORCED, Blocks
from dynattn.methods.registry import register

_NAME = re.compile(rf"blockbound-(?P<mass>{share.NUMBER})-b(?P<block>\d+){FORCED}")


@final
@register
@dataclass(frozen=True)
class BlockBound(Blocks):
    """Drop, for every block of queries, blocks of keys of which bounds prove that every query keeps ``mass``.

    The proof holds but for rounding: the kept mass of every query is at least ``mass``, without a look at what was
    dropped. Of blocks with the same bound the higher are dropped first. A row of blocks without an allowed pair in its
    forced blocks keeps everything, as does one with a NaN or an infinite score in them.

    Args:
        mass: the share of the dense weights that every query keeps, a float above 0, at most 1 (which is dense
            attention).
        block: queries and keys in a block, between 1 and 1024.
        window, sinks: blocks that are kept in any case: as :class:`~dynattn.BlockTopK` has them, but that the window is
            at least 1, since the proof compares with them.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.
    """

    mass: float
    block: int = 16
    window: int | None = None
    sinks: int = Blocks.default_sinks

    def __post_init__(self) -> None:
        share.check("BlockBound", self.mass, "mass")
        if self.window == 0:
            raise ValueError("BlockBound: window must be at least 1: got 0; 1 keeps a query's own block")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``blockbound-0.95-b16``, with ``-wWINDOW`` and ``-sSINKS`` where they differ from the defaults."""
        return f"blockbound-{share.text(self.mass)}{self.options()}"

    @property
    def keeps_everything(self) -> bool:
        """True where the mass is 1."""
        return self.mass == 1

    @classmethod
    def from_name(cls, name: str) -> BlockBound | None:
        """The method that ``name`` stands for, or None where it is not a name of this method."""
        match = _NAME.fullmatch(name)
        if not match:
            return None
        sizes = {key: int(match[key]) for key in ("window", "sinks") if match[key]}
        return cls(float(match["mass"]), int(match["block"]), **sizes)

    def glance(self, head_dim: int, itemsize: int) -> Glance:
        """Two products for a query and a block of keys."""
        return Glance(2 * head_dim / self.block, 2 * head_dim * itemsize / self.block)

    def of_scores(self, scores: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """``log r``, from the scores of all pairs."""
        length, kv_len = scores.shape[-2:]
        forced = self.near(range(-(-length // self.block)), rows.offset, length, kv_len).to(scores.device)
        return proof.of_scores(scores, forced, self.block, rows.query, rows.key, rows.scale)

    def of_input(self, call: Input) -> Iterator[Estimated]:
        """``log r``, from queries and keys."""
        q_len, kv_len = call.query.shape[2], call.key.shape[2]
        return proof.of_input(call, lambda rows: self.near(rows, call.offset, q_len, kv_len), self.block)

    def best(self, value: Tensor, others: Tensor, forced: Tensor) -> Tensor:
        """All but the least, of which the sum stays within what may be lost."""
        if self.keeps_everything:
            return others  # bounds that round to 0 are a part of the mass too
        most = value.exp().masked_fill(~others | value.isnan(), math.inf)
        ranked = most.sort(dim=-1, descending=True, stable=True)
        lost = ranked.values.flip(-1).cumsum(-1).flip(-1)
        return others.scatter(-1, ranked.indices, lost > (1 - self.mass) / self.mass)
