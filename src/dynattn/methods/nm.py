"""N:M attention: of every M consecutive keys, each query keeps the N with the largest scores.

    s = scale · QKᵀ + bias,    kept(i, j) ⇔ s_ij among the N largest of its group of M,    out = softmax(s | kept) V

Source: DFSS, "Dynamic N:M Fine-grained Structured Sparse Attention Mechanism", arXiv:2203.00091, PPoPP 2023.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from dynattn.methods.base import Method

MAX_M = 32

_NAME = re.compile(r"nm-(\d+)-(\d+)(?:-w(\d+))?(?:-s(\d+))?")


@final
@dataclass(frozen=True)
class NM(Method):
    """Keep the N largest scores of every M consecutive keys, chosen per query.

    The key axis is cut into groups ``[0, M), [M, 2M), …``. Ties go to the lower key index, masked keys never
    win over allowed ones, and a tail group of r < M keys keeps min(N, r). With N == M this is dense attention.

    Args:
        n: entries kept in each group, 1 <= n <= m.
        m: keys in a group, 1 <= m <= 32.
        window: also keep every allowed key with ``|i + kv_len - q_len - j| < window``; 0 keeps none.
        sinks: also keep every allowed key with ``j < sinks``; 0 keeps none.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of its range.

    Source: arXiv:2203.00091; ``window`` and ``sinks`` are this library's addition.
    """

    n: int
    m: int
    window: int = 0
    sinks: int = 0

    def __post_init__(self) -> None:
        for field in ("n", "m", "window", "sinks"):
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

    @property
    def name(self) -> str:
        """``dense`` where N == M, else ``nm-N-M`` with ``-wWINDOW`` and ``-sSINKS`` where they are set."""
        if self.keeps_everything:
            return "dense"
        window = f"-w{self.window}" if self.window else ""
        sinks = f"-s{self.sinks}" if self.sinks else ""
        return f"nm-{self.n}-{self.m}{window}{sinks}"

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
        return cls(*(int(part or 0) for part in match.groups())) if match else None
