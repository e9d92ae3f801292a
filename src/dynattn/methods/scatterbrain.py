"""Scatterbrain: exact weights where a hash finds large ones, random features for the rest.

    w_ij = exp(s_ij) for (i, j) in S,    φ(q_i) · φ(k_j) elsewhere,        out_i = Σ_j w_ij v_j / Σ_j w_ij

Source: "Scatterbrain: Unifying Sparse and Low-rank Attention", arXiv:2110.15343, NeurIPS 2021.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from dynattn.maths.buckets import PairTiles, hashes, rotations, tiles
from dynattn.maths.linear import forbid, key_bias, mix
from dynattn.maths.random_features import directions, log_features
from dynattn.maths.scores import arithmetic_dtype, per_head
from dynattn.methods.base import MixingMethod
from dynattn.methods.registry import register

_NAME = re.compile(
    r"scatterbrain-f(?P<features>\d+)-b(?P<buckets>\d+)-r(?P<rounds>\d+)(?P<iid>-iid)?(?:-seed(?P<seed>\d+))?"
)
# In a causal tile the feature of a later key may be larger than all that a query sees. Its factor is limited to this,
# which is far from overflow. The pair does not count anyway.
_MOST = 60.0


@final
@register
@dataclass(frozen=True)
class Scatterbrain(MixingMethod):
    """Exact weights for pairs in the same hash bucket, an unbiased estimate of the weights of all other pairs.

        q' = √scale · q,    k' = √scale · k,    s_ij = q'_i · k'_j
        w_ij = exp(s_ij) for (i, j) in S,    φ(q'_i) · φ(k'_j) elsewhere,    E[w_ij] = exp(s_ij)
        out_i = Σ_j w_ij v_j / Σ_j w_ij

    The numerator is computed as ``φ(q') (φ(k')ᵀ v) + Σ_S (exp(s) - φ(q') · φ(k')) v``. Time and memory are linear in
    length, except for what the pairs of S take. φ are positive random features (:mod:`dynattn.maths.random_features`),
    S the pairs that an angular hash puts into one bucket in at least one round (:mod:`dynattn.maths.buckets`).
    Numerator and denominator are unbiased; their ratio is accurate only where the denominator's variance is small.

    A mask must be the same for every query. It multiplies both parts by ``exp(bias_j)``.

    Args:
        features: number of random features, at least 1.
        buckets: the number of buckets of the hash in a round, even and at least 2.
        rounds: the number of rounds of the hash; 0 for no S at all, which is Performer's attention.
        orthogonal: whether features are orthogonal to each other in blocks of head_dim.
        seed: the seed of features and hash; one seed gives one function, on every device.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.

    Source: arXiv:2110.15343; features, arXiv:2009.14794.
    """

    features: int = 64
    buckets: int = 16
    rounds: int = 2
    orthogonal: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("features", 1), ("buckets", 2), ("rounds", 0), ("seed", 0)):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"Scatterbrain: {field} must be an int: got {value!r}; pass a whole number")
            if value < least:
                raise ValueError(f"Scatterbrain: {field} must be at least {least}: got {value}; leave it out")
        if self.buckets % 2:
            raise ValueError(f"Scatterbrain: buckets must be even: got {self.buckets}; try {self.buckets + 1}")
        if not isinstance(self.orthogonal, bool):
            raise TypeError(f"Scatterbrain: orthogonal must be a bool: got {self.orthogonal!r}; pass True or False")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``scatterbrain-fFEATURES-bBUCKETS-rROUNDS`` with ``-iid``, ``-seedSEED`` where they are set."""
        iid = "" if self.orthogonal else "-iid"
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"scatterbrain-f{self.features}-b{self.buckets}-r{self.rounds}{iid}{seed}"

    @classmethod
    def from_name(cls, name: str) -> Scatterbrain | None:
        """The method that ``name`` stands for, or None where it is not a Scatterbrain's; ``scatterbrain`` for all
        defaults."""
        if name == "scatterbrain":
            return cls()
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        sizes = {field: int(match[field]) for field in ("features", "buckets", "rounds")}
        return cls(**sizes, orthogonal=match["iid"] is None, seed=int(match["seed"] or 0))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        """Mix the values.

        Args:
            query: (batch, heads, q_len, head_dim).
            key: (batch, kv_heads, kv_len, head_dim).
            value: (batch, kv_heads, kv_len, value_dim).
            attn_mask: broadcasts to (batch, heads, 1, kv_len): bool (True: allowed) or float (added).
            causal: forbid keys after the query, aligned bottom-right.
            scale: factor of the products.

        Returns:
            (batch, heads, q_len, value_dim) in the dtype of ``query``; 0 in rows with nothing allowed.

        Raises:
            ValueError: the mask differs from query to query.
        """
        dtype, heads = arithmetic_dtype(query.dtype), query.shape[1]
        q = math.copysign(math.sqrt(abs(scale)), scale) * query.to(dtype)
        k = math.sqrt(abs(scale)) * per_head(key.to(dtype), heads)
        bias = key_bias("scatterbrain", attn_mask, dtype)
        w, turns = (x.to(q) for x in self.draw(query.shape[-1]))
        log_key, v = forbid(log_features(k, w), per_head(value.to(dtype), heads), bias)
        v = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)  # the last column sums the weights
        log_query = log_features(q, w)
        everything, scale_all = mix(log_query, log_key, v, causal)
        if self.rounds:
            forbidden = None if bias is None else (bias == -math.inf).squeeze(-1)
            near = hashes(q, turns), hashes(k, turns), self.buckets, forbidden, causal
            parts = _Parts(q, k, bias, log_query, log_key, v)
            everything = _corrected(parts, near, everything, scale_all)
        total = everything[..., -1:]
        out = everything[..., :-1] / total.where(total > 0, 1.0)
        return out.to(query.dtype)

    def draw(self, head_dim: int) -> tuple[Tensor, Tensor]:
        """The random numbers: directions of the features (features, head_dim), and rotations of the hash (rounds,
        head_dim, buckets / 2), float64 on the CPU."""
        generator = torch.Generator().manual_seed(self.seed)
        w = directions(self.features, head_dim, self.orthogonal, generator)
        return w, rotations(self.buckets, self.rounds, head_dim, generator)


class _Parts(NamedTuple):
    """The tensors from which the weights of pairs are computed, each (batch, heads, length, …)."""

    query: Tensor
    key: Tensor
    bias: Tensor | None
    log_query: Tensor
    log_key: Tensor
    value: Tensor

    def flat(self) -> _Parts:
        """The same with batch, heads and length in one dimension, as tiles count them."""
        query, key, bias, log_query, log_key, value = self
        bias = None if bias is None else bias.expand(*key.shape[:3], 1).flatten(0, 2)
        query, key, log_query, log_key, value = (x.flatten(0, 2) for x in (query, key, log_query, log_key, value))
        return _Parts(query, key, bias, log_query, log_key, value)

    def scores(self, tile: PairTiles) -> Tensor:
        """``s_ij + bias_j``, -inf for pairs that do not count: (tiles, 32, 32)."""
        s = self.query[tile.rows] @ self.key[tile.columns].mT
        if self.bias is not None:
            s = s + self.bias[tile.columns].mT
        return s.masked_fill(~tile.counts, -math.inf)

    def estimates(self, tile: PairTiles, scale: Tensor) -> Tensor:
        """``φ(q_i) · φ(k_j) · exp(bias_j - scale_i)``, 0 for pairs that do not count: (tiles, 32, 32)."""
        log_key = self.log_key[tile.columns]
        largest = log_key.detach().amax(1, keepdim=True).clamp(min=torch.finfo(log_key.dtype).min)
        log_query = (self.log_query[tile.rows] + largest - scale[tile.rows]).clamp(max=_MOST)
        return (log_query.exp() @ (log_key - largest).exp().mT).where(tile.counts, 0.0)


def _corrected(parts: _Parts, near: tuple, everything: Tensor, scale_all: Tensor) -> Tensor:
    """All pairs' estimates, with those of S taken out and their exact weights put in.

    By rounding, the sum of the weights outside S may come out negative. It is cut at 0, so that the denominator is
    never smaller than the part of S.
    """
    parts, shape = parts.flat(), everything.shape
    everything, scale_all = everything.flatten(0, 2), scale_all.flatten(0, 2)
    largest = scale_all.clone()
    with torch.no_grad():
        for tile in tiles(*near):
            top = parts.scores(tile).amax(2).flatten()
            largest.view(-1).scatter_reduce_(0, tile.rows.flatten(), top, "amax")
    everything = everything * (scale_all - largest).exp()
    change = torch.zeros_like(everything)  # the numerator's; the last column is the exact part of the denominator
    taken = torch.zeros_like(everything[:, :1])
    for tile in tiles(*near):
        exact = (parts.scores(tile) - largest[tile.rows]).exp()
        estimate = parts.estimates(tile, largest)
        v = parts.value[tile.columns]
        both = torch.cat(((exact - estimate) @ v[..., :-1], exact.sum(-1, keepdim=True)), dim=-1)
        change = change.index_add(0, tile.rows.flatten(), both.flatten(0, 1))
        taken = taken.index_add(0, tile.rows.flatten(), estimate.sum(-1).view(-1, 1))
    outside = (everything[:, -1:] - taken).clamp(min=0)
    sums = torch.cat((everything[:, :-1] + change[:, :-1], outside + change[:, -1:]), dim=-1)
    return sums.view(shape)
