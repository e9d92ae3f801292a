"""Blocks of keys that lie close together: keys are put in the order of their clusters before they are cut into blocks.

    order        = keys by cluster, of as many keys as a block on average (:mod:`dynattn.maths.clusters`)
    kept(i, j)   ⇔ the method keeps (i, place of j in the order), of the keys in that order

Attention does not care in which order keys come, so that only the choice changes: a block holds keys that are like each
other wherever they stand, and is worth keeping or dropping whole.

Source: Sparse VideoGen2, arXiv:2505.18875, which orders queries as well; here queries stay where they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.maths import clusters
from dynattn.methods.base import Glance, PairMethod, Rows
from dynattn.methods.blocks import EstimatedBlocks
from dynattn.methods.registry import parse, register

_NAME = re.compile(r"clustered-(?P<method>block(?:topk|mass)-.+)")


@final
@register
@dataclass(frozen=True)
class Clustered(PairMethod):
    """Keep the blocks of keys that ``method`` chooses, of keys in the order of their clusters.

    For attention without a causal mask: with one it runs, in plain PyTorch, and few blocks of keys are in the past.
    Keys that a mask forbids are clustered too. Each key head has an order of its own.

    Args:
        method: a ``BlockTopK`` or a ``BlockMass`` without window and sinks, since places in the order say nothing of
            what is near.

    Raises:
        TypeError: ``method`` is another.
        ValueError: it has a window or sinks.

    Source: arXiv:2505.18875.
    """

    method: EstimatedBlocks

    def __post_init__(self) -> None:
        if not isinstance(self.method, EstimatedBlocks):
            raise TypeError(f"Clustered: method must be a BlockTopK or BlockMass: got {self.method!r}")
        if self.method.window != 0 or self.method.sinks != 0:
            raise ValueError(
                "Clustered: method must have neither window nor sinks, which are of keys in their own order: got "
                f"{self.method.name}; set window=0 and sinks=0"
            )
        super().__post_init__()

    @property
    def name(self) -> str:
        """``clustered-`` and the method's name, as in ``clustered-blocktopk-0.25-b16-sampled-w0-s0``."""
        return f"clustered-{self.method.name}"

    @classmethod
    def from_name(cls, name: str) -> Clustered | None:
        """The method that ``name`` stands for, or None where it is not a name of this method."""
        match = _NAME.fullmatch(name)
        method = parse(match["method"]) if match else None
        return cls(method) if isinstance(method, EstimatedBlocks) else None

    @property
    def keeps_everything(self) -> bool:
        """True where the method does."""
        return self.method.keeps_everything

    @property
    def rows_together(self) -> int:
        """The method's."""
        return self.method.rows_together

    def order(self, key: Tensor) -> Tensor:
        """The numbers of the keys (batch, heads, kv_len, head_dim) in their order: int64 (batch, heads, kv_len)."""
        return clusters.order(key, self.method.block)

    def glance(self, head_dim: int, itemsize: int) -> Glance:
        """The method's, and the clusters, for as many queries as keys."""
        found, passes = self.method.glance(head_dim, itemsize), clusters.ROUNDS + 1
        return Glance(
            found.multiply_adds + passes * head_dim / self.method.block,
            found.key_bytes + passes * head_dim * itemsize,
        )

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The method's choice, of the keys in their order."""
        order = self.order(rows.key)
        columns = order.unsqueeze(2).expand_as(scores)
        key = rows.key.gather(2, order.unsqueeze(-1).expand_as(rows.key))
        kept = self.method.choose(scores.gather(3, columns), rows._replace(key=key))
        return torch.zeros_like(kept).scatter_(3, columns, kept)
