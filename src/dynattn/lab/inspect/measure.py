"""Measures what each head of a layer keeps of a real input, beside what theory expects of its scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

import dynattn
from dynattn import metrics, theory
from dynattn.integrations.transformers import Call
from dynattn.maths.positions import near_or_first
from dynattn.methods.nm import NM, choose
from dynattn.reference import pairs as reference


@dataclass(frozen=True)
class Head:
    """Figures of one head; kept masses are means over the queries.

    Attributes:
        layer: index of the layer.
        head: index of the head in it.
        sigma: standard deviation of the scores about their row's mean, all rows pooled.
        kept_mass: dense softmax weight that the method keeps.
        worst_row: the smallest kept mass of a query.
        density: kept pairs over allowed pairs.
        predicted: kept mass that the theory expects of independent Gaussian scores of this sigma.
        shuffled: kept mass of the method on the same scores, each row's keys in random order.
        top_k: kept mass of each row's largest scores, as many as the method keeps there.
        random: kept mass of random pairs, as many in each row.
        output_error: relative error of the head's output.
        error: mean over queries of ``‖out - dense‖``.
        bound: mean over queries of ``(1 - kept mass) · diameter of V``.
        keys: what happens to each key.
    """

    layer: int
    head: int
    sigma: float
    kept_mass: float
    worst_row: float
    density: float
    predicted: float
    shuffled: float
    top_k: float
    random: float
    output_error: float
    error: float
    bound: float
    keys: Keys


@dataclass(frozen=True)
class Keys:
    """What happens to each key in one head, (kv_len,) each.

    Attributes:
        received: dense attention that the key receives, summed over queries.
        lost: the part of it that is dropped.
        kept_by: share of the queries allowed to see the key that keep it.
    """

    received: Tensor
    lost: Tensor
    kept_by: Tensor


@dataclass(frozen=True)
class Maps:
    """Attention weights of one head, (q_len, kv_len) each.

    Attributes:
        dense: all weights.
        kept: bool, what the method keeps.
        sparse: the weights over what is kept, which sum to 1 again.
    """

    dense: Tensor
    kept: Tensor
    sparse: Tensor


def measure(call: Call, method: NM) -> tuple[list[Head], bool]:
    """Figures of the heads of one call.

    Args:
        call: what the model passes to attention, a batch of one.
        method: what to keep.

    Returns:
        One entry a head, and whether every row's error is within its certified bound.
    """
    arguments = {"attn_mask": call.attn_mask, "causal": call.causal, "scale": call.scale}
    out, aux = dynattn.attention(call.query, call.key, call.value, method, return_aux=True, **arguments)
    dense = dynattn.attention(call.query, call.key, call.value, NM(1, 1), **arguments)
    certificate = metrics.certify(out, dense, aux.kept_mass, call.value)
    errors = metrics.relative_error(out, dense)
    heads = []
    for head in range(out.shape[1]):
        s = scores(call, head)
        kept = choice(s, method)
        heads.append(
            Head(
                layer=call.layer,
                head=head,
                kept_mass=float(aux.kept_mass[0, head].mean()),
                worst_row=float(aux.kept_mass[0, head].min()),
                density=float(aux.density[0, head]),
                output_error=float(errors[0, head]),
                error=float(certificate.error[0, head].mean()),
                bound=float(certificate.bound[0, head].mean()),
                keys=_keys(s, kept),
                **_beside(s, kept, method, seed=call.layer << 16 | head),
            )
        )
    return heads, certificate.holds


def maps(call: Call, method: NM, head: int) -> Maps:
    """Attention weights of one head of a call with a batch of one, dense and sparse."""
    s = scores(call, head)
    kept = choice(s, method)
    return Maps(_weights(s), kept, _weights(s.masked_fill(~kept, -math.inf)))


def scores(call: Call, head: int) -> Tensor:
    """The scores of one head, (q_len, kv_len), -inf where the pair is not allowed."""
    query = call.query[:, head : head + 1]
    shared = head * call.key.shape[1] // call.query.shape[1]
    key = call.key[:, shared : shared + 1]
    mask = call.attn_mask
    if mask is not None and mask.dim() > 2 and mask.shape[-3] > 1:
        mask = mask[..., head : head + 1, :, :]
    scale = query.shape[-1] ** -0.5 if call.scale is None else call.scale
    return reference.scores(query, key, mask, call.causal, scale, offset=key.shape[2] - query.shape[2])[0, 0]


def choice(s: Tensor, method: NM) -> Tensor:
    """The pairs that the method keeps of scores (q_len, kv_len)."""
    return choose(s[None, None], method, offset=s.shape[1] - s.shape[0])[0, 0]


def spread(s: Tensor, allowed: Tensor) -> float:
    """Sigma of scores (q_len, kv_len): pooled standard deviation of the allowed ones about their rows' means.

    A degree of freedom is taken off for each row.
    """
    pairs = allowed.sum(-1)
    filled = s.masked_fill(~allowed, 0.0).double()
    mean = filled.sum(-1) / pairs.clamp(min=1)
    squares = (filled - mean.unsqueeze(-1)).masked_fill(~allowed, 0.0).square().sum()
    return float((squares / (pairs - 1).clamp(min=0).sum().clamp(min=1)).sqrt())


def expected(sigma: float, allowed: Tensor, method: NM) -> float:
    """Kept mass that the theory expects of Gaussian scores: mean over the rows, each row of its own length.

    Args:
        sigma: standard deviation of the scores.
        allowed: (q_len, kv_len), bool.
        method: what to keep.
    """
    length = allowed.sum(-1)
    lengths, index = length.clamp(min=1).unique(return_inverse=True)
    of_groups = _expected_by_length(replace(method, window=0, sinks=0), sigma, tuple(lengths.tolist()))[index]
    if method.window or method.sinks:
        share = _always_kept(allowed, method).sum(-1) / length.clamp(min=1)
        of_groups = share + (1 - share) * of_groups
    return float(of_groups.masked_fill(length == 0, 1.0).mean())


@lru_cache(maxsize=64)
def _expected_by_length(method: NM, sigma: float, lengths: tuple[int, ...]) -> Tensor:
    """Kept for the next method that differs in its window alone: integrals for 2048 lengths take up to 0.1 s."""
    return theory.kept_mass(method, sigma, torch.tensor(lengths, device="cpu"))


def _beside(s: Tensor, kept: Tensor, method: NM, seed: int) -> dict[str, float]:
    """Sigma, the theory's expectation, and other choices of the same density on the same scores."""
    allowed = s != -math.inf
    sigma = spread(s, allowed)
    noise = torch.rand(s.shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    anyhow = noise.masked_fill(~allowed, -1.0).argsort(-1, descending=True)  # forbidden pairs last
    shuffled = _reorder(s, anyhow, allowed)
    count = kept.sum(-1, keepdim=True)
    return {
        "sigma": sigma,
        "predicted": expected(sigma, allowed, method),
        "shuffled": float(metrics.kept_mass(shuffled, choice(shuffled, method)).mean()),
        "top_k": float(metrics.kept_mass(s, _first(s.argsort(-1, descending=True), count)).mean()),
        "random": float(metrics.kept_mass(s, _first(anyhow, count)).mean()),
    }


def _always_kept(allowed: Tensor, method: NM) -> Tensor:
    q_len, kv_len = allowed.shape
    return allowed & near_or_first(allowed, kv_len - q_len, method.window, method.sinks)


def _reorder(s: Tensor, order: Tensor, allowed: Tensor) -> Tensor:
    """Each row's scores in another order, on the positions that are allowed; ``order`` puts forbidden pairs last."""
    s = s.gather(-1, order)
    if bool(allowed.all()):
        return s
    return torch.empty_like(s).scatter_(-1, (~allowed).to(torch.uint8).argsort(dim=-1, stable=True), s)


def _first(order: Tensor, count: Tensor) -> Tensor:
    """True for the first ``count`` of each row's order."""
    rank = torch.arange(order.shape[-1], device="cpu").expand_as(order)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, rank < count)


def _weights(s: Tensor) -> Tensor:
    return s.softmax(-1).where((s != -math.inf).any(-1, keepdim=True), 0.0)


def _keys(s: Tensor, kept: Tensor) -> Keys:
    weights = _weights(s)
    visible = (s != -math.inf).sum(0).clamp(min=1)
    return Keys(weights.sum(0), weights.masked_fill(kept, 0.0).sum(0), kept.sum(0) / visible)
