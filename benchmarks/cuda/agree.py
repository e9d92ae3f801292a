"""Do the two forward kernels choose the same keys? If so, the faster one may serve training.

The backward repeats the choice of the ``mma`` kernel, bit for bit. ``wgmma`` sums scores in other hardware; where two
scores are equal but for rounding it may keep another key. With the unit matrix for values the output is P itself, and
shows what was kept.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from dynattn import NM
from dynattn.kernels import cuda
from dynattn.kernels.pattern import Pattern

_KEYS = 128
_QUERIES, _HEADS = 4096, 8
CASES = tuple(itertools.product((NM(1, 2), NM(2, 4)), (64, 128), ("normal", "near ties")))


def run() -> list[dict]:
    """One record a case: scores that differ in some bit, and kept pairs that only one of the kernels keeps."""
    return [_compare(*case) for case in CASES]


def _compare(method: NM, head_dim: int, kind: str) -> dict:
    query, key = _inputs(method, head_dim, kind)
    scores, scores_of_mma = (_scores(query, key, method, for_backward) for for_backward in (False, True))
    kept, kept_by_mma = (_kept(query, key, method, for_backward) for for_backward in (False, True))
    return {
        "method": method.name, "head_dim": head_dim, "inputs": kind,
        "scores": scores.numel(), "scores_that_differ": int((scores != scores_of_mma).sum()),
        "kept_pairs": int(kept_by_mma.sum()), "kept_by_one_only": int((kept & ~kept_by_mma).sum()),
    }  # fmt: skip


def _scores(query: Tensor, key: Tensor, method: NM, for_backward: bool) -> Tensor:
    """One score a query, to the bit: the logsumexp of a row that may attend to one key only."""
    alone = torch.arange(_QUERIES, device=query.device).unsqueeze(-1) % _KEYS == torch.arange(
        _KEYS, device=query.device
    )
    return _forward(query, key, method, alone, 1.0, for_backward)[1]


def _kept(query: Tensor, key: Tensor, method: NM, for_backward: bool) -> Tensor:
    """Which pairs were kept; the scale is small, so that no weight vanishes."""
    return _forward(query, key, method, None, 1 / 64, for_backward)[0] > 0


def _forward(
    query: Tensor, key: Tensor, method: NM, mask: Tensor | None, scale: float, for_backward: bool
) -> tuple[Tensor, Tensor]:
    value = torch.eye(_KEYS, dtype=query.dtype, device=query.device).expand(1, _HEADS, -1, -1).contiguous()
    out = query.new_empty(1, _HEADS, _QUERIES, _KEYS)
    logsumexp = torch.empty(out.shape[:3], device=query.device)
    pattern = Pattern.of(method, False, scale)
    cuda.nm_forward(query, key, value, mask, out, logsumexp, None, None, None, pattern, for_backward)
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
