"""Dynamic sparse attention by prediction: cheap scores decide which pairs get exact ones.

    s̃ = scale · quantised(Q R) quantised(K R)ᵀ,    R ∈ √(3/k) · {-1, 0, 1}^(head_dim × k),    kept = top of s̃

Source: "Transformer Acceleration with Dynamic Sparse Attention", arXiv:2110.11299.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, final

import torch
from torch import Tensor

from dynattn.maths.scores import arithmetic_dtype
from dynattn.maths.selection import largest
from dynattn.methods import share
from dynattn.methods.base import Glance, PairMethod, Rows
from dynattn.methods.registry import register

BITS = (4, 8)
TOGETHER = (1, 4, 8, 16)

_NAME = re.compile(
    rf"dsa-(?P<ratio>{share.NUMBER})(?:-k(?P<projection>{share.NUMBER}))?(?:-int(?P<bits>\d+))?(?:-v(?P<together>\d+))?"
    r"(?:-seed(?P<seed>\d+))?"
)


class Quantised(NamedTuple):
    """Rows as whole numbers times a step: ``x ≈ levels · step``.

    Attributes:
        levels: whole numbers between ``-(2^(bits-1) - 1)`` and ``2^(bits-1) - 1``, in the dtype of x.
        step: (..., 1).
    """

    levels: Tensor
    step: Tensor


@final
@register
@dataclass(frozen=True)
class DSA(PairMethod):
    """Keep, for a run of queries, the keys that score best by a projection to few dimensions and few bits.

        x̂ = x R,    x̂ ≈ step · levels, per row, levels of so many bits,    s̃_ij = scale · q̂_i · k̂_j
        p_j = Σ over the run's queries i of softmax(s̃_i)_j
        kept(i, j) ⇔ p_j among the ⌈ratio · allowed keys⌉ largest, and the pair is allowed

    A run (a column vector of the attention matrix) is ``together`` consecutive queries, counted from the first,
    which share their keys, so that a kept key is fetched once for all of them. The shared choice is the one that keeps
    the most predicted weight of the run. The allowed keys of a run are those that one of its queries may see; a query
    that would be left without any key keeps the best predicted one of its own. Ties go to the lower key index.

    This is the form without training, on each head's queries and keys. The published predictor works on the layer's
    input and is trained: :class:`dynattn.nn.DSAPredictor`.

    Args:
        ratio: keep ratio, a float above 0 and at most 1; 1.0 is dense attention.
        projection: k over head_dim, a float above 0 and at most 1; k is at least 1.
        bits: how many bits a level has, 4 or 8.
        together: how many queries share their keys: 1, 4, 8 or 16.
        seed: the seed of R; one seed gives one R, on every device.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.

    Source: arXiv:2110.11299; R is that of Achlioptas, doi:10.1016/S0022-0000(03)00025-4.
    """

    ratio: float
    projection: float = 0.25
    bits: int = 4
    together: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        share.check("DSA", self.ratio)
        if not isinstance(self.projection, float) or not 1e-6 <= self.projection <= 1:
            raise ValueError(f"DSA: projection must be a float between 1e-6 and 1: got {self.projection!r}; try 0.25")
        for field, known in (("bits", BITS), ("together", TOGETHER), ("seed", None)):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"DSA: {field} must be an int: got {value!r}; pass a whole number")
            if known is not None and value not in known:
                raise ValueError(f"DSA: {field} must be one of {known}: got {value}; try {known[0]}")
        if self.seed < 0:
            raise ValueError(f"DSA: seed must be at least 0: got {self.seed}; leave it out")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``dsa-RATIO-kPROJECTION-intBITS-vROWS`` with ``-seedSEED`` where it is set."""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"dsa-{share.text(self.ratio)}-k{share.text(self.projection)}-int{self.bits}-v{self.together}{seed}"

    @property
    def keeps_everything(self) -> bool:
        """True where the ratio is 1."""
        return self.ratio == 1.0

    @classmethod
    def from_name(cls, name: str) -> DSA | None:
        """The method that ``name`` stands for, or None where it is no DSA name. All but the ratio may be left out."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        shares = {field: float(match[field]) for field in ("ratio", "projection") if match[field]}
        whole = {field: int(match[field]) for field in ("bits", "together", "seed") if match[field]}
        return cls(**shares, **whole)

    @property
    def rows_together(self) -> int:
        """Queries that share their keys."""
        return self.together

    def rank(self, head_dim: int) -> int:
        """Dimensions that a head's queries and keys are projected to."""
        return max(1, round(self.projection * head_dim))

    def glance(self, head_dim: int, itemsize: int) -> Glance:
        """The projected keys: their products, in few bits, and a step for each row."""
        rank = self.rank(head_dim)
        return Glance(rank, rank * self.bits / 8 + itemsize)

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The kept pairs. The exact scores tell which pairs are allowed, and nothing else.

        Args:
            scores: (batch, heads, rows, kv_len), -inf where the pair is not allowed.
            rows: the queries and keys.

        Returns:
            bool (batch, heads, rows, kv_len).
        """
        predicted = self.predict(rows.query, rows.key, rows.scale)
        return top_of_runs(predicted, scores != -math.inf, self.ratio, self.together)

    def predict(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """``s̃``.

        Args:
            query: (batch, heads, q_len, head_dim).
            key: (batch, heads, kv_len, head_dim).
            scale: factor of the products.

        Returns:
            (batch, heads, q_len, kv_len), float32, or float64 for float64 inputs.
        """
        head_dim, dtype = query.shape[-1], arithmetic_dtype(query.dtype)
        r = projection(head_dim, self.rank(head_dim), self.seed).to(query.device, dtype)
        q, k = quantise(query.to(dtype) @ r, self.bits), quantise(key.to(dtype) @ r, self.bits)
        # Products of levels are whole numbers that the dtype holds exactly: no rounding decides a tie.
        return (q.levels @ k.levels.mT) * (scale * q.step * k.step.mT)


def projection(width: int, rank: int, seed: int) -> Tensor:
    """R: ``√(3 / rank) · {-1, 0, 1}`` with probabilities 1/6, 2/3, 1/6, so that E[R Rᵀ] = I.

    Returns:
        (width, rank), float64 on the CPU.
    """
    die = torch.tensor(_die(width, rank, seed), dtype=torch.int64, device="cpu").view(width, rank)
    return math.sqrt(3 / rank) * ((die == 5).double() - (die == 0).double())


@lru_cache(maxsize=64)  # a gradient under vmap may not draw random numbers, not even those of its forward
def _die(width: int, rank: int, seed: int) -> list[int]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(6, (width * rank,), generator=generator, device="cpu").tolist()


def quantise(x: Tensor, bits: int) -> Quantised:
    """Symmetric quantisation with a step for each row: the row's largest absolute value becomes the highest level."""
    most = 2 ** (bits - 1) - 1
    step = x.abs().amax(-1, keepdim=True) / most
    step = step.masked_fill(step == 0, 1.0)
    return Quantised((x / step).round(), step)


def top_of_runs(predicted: Tensor, allowed: Tensor, ratio: float, together: int) -> Tensor:
    """The pairs that :class:`DSA` keeps by predicted scores.

    Args:
        predicted: (batch, heads, rows, kv_len).
        allowed: bool, same shape.
        ratio: keep ratio.
        together: queries of a run; the first row begins one.

    Returns:
        bool, same shape.
    """
    predicted = predicted.masked_fill(~allowed, -math.inf)
    if together == 1 or predicted.shape[-1] == 0:  # without keys there is nothing to choose
        return _top(predicted, ratio)
    seen = allowed.any(-1, keepdim=True)
    weights = predicted.masked_fill(~seen, 0.0).softmax(-1).where(allowed, 0.0)
    shares = _runs(weights, together).sum(-2).masked_fill(~_runs(allowed, together).any(-2), -math.inf)
    kept = _top(shares, ratio).repeat_interleave(together, dim=-2)[..., : predicted.shape[-2], :] & allowed
    best = torch.zeros_like(kept).scatter_(-1, predicted.argmax(-1, keepdim=True), True)
    return kept | (best & seen & ~kept.any(-1, keepdim=True))


def _runs(x: Tensor, length: int) -> Tensor:
    """The rows in runs, (..., runs, length, kv_len). The last run is filled up with 0."""
    return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % length)).unflatten(-2, (-1, length))


def _top(x: Tensor, ratio: float) -> Tensor:
    """True for the ⌈ratio · allowed⌉ largest of each row. -inf marks what is not allowed."""
    allowed = x != -math.inf
    return largest(x, share.ceil(ratio, allowed.sum(-1))) & allowed
