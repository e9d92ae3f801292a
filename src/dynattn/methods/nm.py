"""N:M attention: of every group of M keys, each query keeps the N with the largest scores.

    s = scale · QKᵀ + bias,    kept(i, j) ⇔ s_ij among the N largest of its group of M,    out = softmax(s | kept) V

The group of key j is ``(j // (M·stride), j % stride)``: its keys stand ``stride`` apart.

Source: DFSS, "Dynamic N:M Fine-grained Structured Sparse Attention Mechanism", arXiv:2203.00091, PPoPP 2023.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.maths.positions import near_or_first
from dynattn.methods.base import Choice, PairMethod, Rows
from dynattn.methods.registry import register

MAX_M = 32
MAX_STRIDE = 64
MAX_BLOCK = 256  # the largest m * stride

_NAME = re.compile(r"nm-(?P<n>\d+)-(?P<m>\d+)(?:-x(?P<stride>\d+))?(?:-w(?P<window>\d+))?(?:-s(?P<sinks>\d+))?")


@final
@register
@dataclass(frozen=True)
class NM(PairMethod):
    """Keep the N largest scores of every group of M keys, chosen per query.

    The key axis is cut into blocks of M·stride keys, ``[0, M·stride), [M·stride, 2M·stride), …``, and each block into
    ``stride`` groups: of the block that starts at b, group r holds the keys ``b + r, b + r + stride, …,
    b + r + (M-1)·stride``. With stride 1 a group is M consecutive keys. Ties go to the lower key index, masked keys
    never win over allowed ones, and a group of the last block that has only a < M keys keeps min(N, a). With N == M
    this is dense attention.

    Args:
        n: entries kept in each group, 1 <= n <= m.
        m: keys in a group, 1 <= m <= 32.
        window: also keep every allowed key with ``|i + kv_len - q_len - j| < window``; 0 keeps none.
        sinks: also keep every allowed key with ``j < sinks``; 0 keeps none.
        stride: how far apart the keys of a group stand, 1 <= stride <= 64 and m * stride <= 256. Neighbouring keys
            often score alike; with a stride they do not compete for one place, at no cost in arithmetic.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of its range.

    Source: arXiv:2203.00091; ``window``, ``sinks`` and ``stride`` are this library's addition.
    """

    n: int
    m: int
    window: int = 0
    sinks: int = 0
    stride: int = 1

    def __post_init__(self) -> None:
        for field in ("n", "m", "window", "sinks", "stride"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"NM: {field} must be an int: got {value!r}; pass a whole number, as in NM(2, 4)")
        if not 1 <= self.m <= MAX_M:
            raise ValueError(f"NM: m must be between 1 and {MAX_M}: got {self.m}; try NM(2, 4) or NM(1, 2)")
        if not 1 <= self.n <= self.m:
            raise ValueError(f"NM: n must be between 1 and m: got n={self.n}, m={self.m}; try NM({self.m}, {self.m})")
        for field in ("window", "sinks"):
            value = getattr(self, field)
            if not 0 <= value < 2**31:
                raise ValueError(f"NM: {field} must be between 0 and 2**31 - 1: got {value}; use 0 to keep none")
        if not 1 <= self.stride <= MAX_STRIDE:
            raise ValueError(f"NM: stride must be between 1 and {MAX_STRIDE}: got {self.stride}; try 1 or 16")
        if self.m * self.stride > MAX_BLOCK:
            raise ValueError(
                f"NM: m * stride must be at most {MAX_BLOCK}: got {self.m} * {self.stride}; "
                f"use a stride of at most {MAX_BLOCK // self.m}"
            )
        super().__post_init__()

    @property
    def name(self) -> str:
        """``dense`` where N == M, else ``nm-N-M`` with ``-xSTRIDE``, ``-wWINDOW``, ``-sSINKS`` where they are set."""
        if self.keeps_everything:
            return "dense"
        stride = f"-x{self.stride}" if self.stride > 1 else ""
        window = f"-w{self.window}" if self.window else ""
        sinks = f"-s{self.sinks}" if self.sinks else ""
        return f"nm-{self.n}-{self.m}{stride}{window}{sinks}"

    @property
    def keeps_everything(self) -> bool:
        """True where N == M."""
        return self.n == self.m

    @classmethod
    def from_name(cls, name: str) -> NM | None:
        """The method that ``name`` stands for, or None where it is not an N:M name."""
        if name == "dense":
            return cls(1, 1)
        match = _NAME.fullmatch(name)
        return cls(**{field: int(part) for field, part in match.groupdict().items() if part}) if match else None

    @property
    def choice(self) -> Choice:
        """In groups of keys."""
        return Choice.GROUPS

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """As :func:`choose` says."""
        return choose(scores, self, rows.offset)

    @property
    def looks_at_positions(self) -> bool:
        """True where there is a window."""
        return self.window > 0


def choose(s: Tensor, method: NM, offset: int = 0) -> Tensor:
    """The kept pairs: True for the N largest scores of each group, the window and the sinks, where s > -inf.

    NaN counts as the largest score, so that it is kept and reaches the output. Ties go to the lower index.

    Args:
        s: scores (batch, heads, q_len, kv_len), -inf where the pair is not allowed.
        method: what to keep.
        offset: position of the first query on the key axis.

    Returns:
        bool (batch, heads, q_len, kv_len).
    """
    kv_len = s.shape[-1]
    block = method.m * method.stride
    padded = torch.nn.functional.pad(s, (0, -kv_len % block), value=-math.inf)
    # [batch, heads, q_len, blocks, m, stride]: a group is a column of its block.
    groups = padded.unflatten(-1, (padded.shape[-1] // block, method.m, method.stride))
    order = groups.sort(dim=-2, descending=True, stable=True).indices
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-2, order[..., : method.n, :], True)
    kept = kept.flatten(-3)[..., :kv_len]
    kept = kept | near_or_first(s, offset, method.window, method.sinks)
    return kept & (s != -math.inf)
