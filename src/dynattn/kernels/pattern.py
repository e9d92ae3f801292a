"""The options of a call, as every kernel takes them."""

from __future__ import annotations

from typing import NamedTuple

from dynattn.methods.base import BlockRule, Reach, RowRule
from dynattn.methods.nm import NM

__all__ = ["ANYWHERE", "BlockRule", "Pattern", "Positions", "RowRule"]


class Pattern(NamedTuple):
    """The arguments of the N:M operator after its tensors, in order.

    Attributes:
        n, m, window, sinks, stride: as :class:`dynattn.NM` has them.
        causal: forbid keys after the query, aligned bottom-right.
        scale: factor of the scores, finite and not 0.
        dropout_p: probability of dropping a kept weight.
    """

    n: int
    m: int
    window: int
    sinks: int
    stride: int
    causal: bool
    scale: float
    dropout_p: float = 0.0

    @classmethod
    def of(cls, method: NM, causal: bool, scale: float) -> Pattern:
        """The pattern of ``method``, called with ``causal`` and ``scale``."""
        return cls(method.n, method.m, method.window, method.sinks, method.stride, causal, scale)

    @property
    def method(self) -> NM:
        return NM(self.n, self.m, self.window, self.sinks, self.stride)


class Positions(NamedTuple):
    """What becomes of pairs for where they stand, behind the choice of a :class:`Pattern`.

    Attributes:
        within: a chosen pair outside of it is dropped; None to drop none.
        beyond_blocks: the pattern's window and sinks are kept in dropped blocks too.
    """

    within: Reach | None = None
    beyond_blocks: bool = False


ANYWHERE = Positions()
"""Nothing is dropped or kept for where it stands."""
