"""Do kernels choose the same keys? The wgmma forward and its backward must; wgmma and mma may.

The backward repeats the forward's choice, bit for bit. On Hopper both sum scores by wgmma, of 128 keys at a time with
the queries in registers, and of 64 with the queries in shared memory; no specification says that the sums of one score
are then equal. This asks the device: with the unit matrix for values the forward's output is P itself, and with the
unit matrix for the output's gradient so is the gradient of the values.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import torch
from attention import without_wgmma
from torch import Tensor

from dynattn import NM
from dynattn.kernels import cuda
from dynattn.kernels.pattern import Pattern

_KEYS = 128
_QUERIES, _HEADS = 4096, 8
CASES = tuple(itertools.product((NM(1, 2), NM(2, 4)), (64, 128), ("normal", "near ties")))


def run() -> list[dict]:
    """One record a case: scores that differ in some bit, and kept pairs that only one of two kernels keeps."""
    return [_compare(*case) for case in CASES]


def _compare(method: NM, head_dim: int, kind: str) -> dict:
    query, key = _inputs(method, head_dim, kind)
    scores, scores_of_mma = (_scores(query, key, method, by_mma) for by_mma in (False, True))
    kept, kept_by_mma = (_kept(query, key, method, by_mma) for by_mma in (False, True))
    of_backward = _kept_by_backward(query, key, method)
    return {
        "method": method.name, "head_dim": head_dim, "inputs": kind,
        "scores": scores.numel(), "scores_that_differ": int((scores != scores_of_mma).sum()),
        "kept_pairs": int(kept_by_mma.sum()), "kept_by_one_only": int((kept & ~kept_by_mma).sum()),
        "kept_by_forward_not_backward": int((kept & ~of_backward).sum()),
    }  # fmt: skip


def _scores(query: Tensor, key: Tensor, method: NM, by_mma: bool) -> Tensor:
    """One score a query, to the bit: the logsumexp of a row that may attend to one key only."""
    alone = torch.arange(_QUERIES, device=query.device).unsqueeze(-1) % _KEYS == torch.arange(
        _KEYS, device=query.device
    )
    return _forward(query, key, method, alone, 1.0, by_mma)[1]


def _kept(query: Tensor, key: Tensor, method: NM, by_mma: bool) -> Tensor:
    """Which pairs were kept; the scale is small, so that no weight vanishes."""
    return _forward(query, key, method, None, 1 / 64, by_mma)[0] > 0


def _kept_by_backward(query: Tensor, key: Tensor, method: NM) -> Tensor:
    """The same of the wgmma backward: 64 queries at a time, each as a head of its own, in as many columns."""
    parts = _QUERIES // 64
    query = query.unflatten(2, (parts, 64)).flatten(1, 2).contiguous()
    key = key.repeat_interleave(parts, 1)
    value, grad_out = (
        torch.eye(rows, _KEYS, dtype=key.dtype, device=key.device).expand(1, _HEADS * parts, -1, -1).contiguous()
        for rows in (_KEYS, 64)
    )
    out, logsumexp = torch.empty_like(grad_out), torch.empty(query.shape[:3], device=key.device)
    pattern = Pattern.of(method, False, 1 / 64)
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    cuda.nm_forward(query, key, value, None, out, logsumexp, None, None, None, pattern, for_backward=True)
    cuda.nm_backward(
        grad_out, torch.zeros_like(logsumexp), query, key, value, None, out, logsumexp, *gradients, None, pattern
    )  # fmt: skip
    weights = gradients[2][..., :64].mT  # (1, heads · parts, 64, keys)
    return weights.unflatten(1, (_HEADS, parts)).flatten(2, 3) > 0


def _forward(
    query: Tensor, key: Tensor, method: NM, mask: Tensor | None, scale: float, by_mma: bool
) -> tuple[Tensor, Tensor]:
    value = torch.eye(_KEYS, dtype=query.dtype, device=query.device).expand(1, _HEADS, -1, -1).contiguous()
    out = query.new_empty(1, _HEADS, _QUERIES, _KEYS)
    logsumexp = torch.empty(out.shape[:3], device=query.device)
    pattern = Pattern.of(method, False, scale)
    with without_wgmma() if by_mma else nullcontext():
        cuda.nm_forward(query, key, value, mask, out, logsumexp, None, None, None, pattern)
    return out, logsumexp


def _inputs(method: NM, head_dim: int, kind: str) -> tuple[Tensor, Tensor]:
    """Query and key; near ties: a group's keys are one key, turned by a period of the query."""
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, _HEADS, *shape, device="cuda", generator=generator).bfloat16()

    if kind == "normal":
        return draw(_QUERIES, head_dim), draw(_KEYS, head_dim)
    period = head_dim // method.m
    first = draw(_KEYS // method.m, head_dim)
    key = torch.stack([first.roll(i * period, -1) for i in range(method.m)], 3).flatten(2, 3)
    return draw(_QUERIES, period).repeat(1, 1, 1, method.m), key.contiguous()
