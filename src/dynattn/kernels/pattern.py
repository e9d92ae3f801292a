"""What a call computes besides its tensors, as every kernel takes it."""

from __future__ import annotations

from typing import NamedTuple

from dynattn.methods import share
from dynattn.methods.nm import NM
from dynattn.methods.threshold import Threshold
from dynattn.methods.topk import TopK

_NO_LIMIT = 2**31 - 1


class Pattern(NamedTuple):
    """The operator's arguments after its tensors, in order.

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


class RowRule(NamedTuple):
    """What a row keeps by its own scores: of a allowed keys ``min(most, ⌈numerator · a / denominator⌉)``, or by weight.

    Attributes:
        most: pairs kept at most, at least 1.
        numerator, denominator: share of the allowed keys, above 0 and at most 1; the denominator at most a million.
        weight: at least 0, keeps instead the dense softmax weights that exceed it, and the largest; -1 does not.
    """

    most: int
    numerator: int
    denominator: int
    weight: float = -1.0

    @classmethod
    def of(cls, method: TopK | Threshold) -> RowRule:
        """The rule of ``method``."""
        if isinstance(method, Threshold):
            return cls(_NO_LIMIT, 1, 1, method.least)
        if method.ratio is None:
            return cls(method.k or 1, 1, 1)
        return cls(_NO_LIMIT, *share.exact(method.ratio).as_integer_ratio())
