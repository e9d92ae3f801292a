"""Window attention with sinks: each query keeps the keys near it, and the first few.

    kept(i, j) ⇔ |i + kv_len - q_len - j| < window  or  j < sinks

Nothing is chosen by the scores, so that the scores of the other pairs need not be computed: cost linear in length.

Source: sliding windows, Longformer, arXiv:2004.05150; sinks, StreamingLLM, arXiv:2309.17453.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.maths.positions import near_or_first
from dynattn.methods.base import Choice, Glance, PairMethod, Rows
from dynattn.methods.registry import register

_NAME = re.compile(r"window-(?P<window>\d+)(?:-s(?P<sinks>\d+))?")


@final
@register
@dataclass(frozen=True)
class Window(PairMethod):
    """Keep every allowed key less than ``window`` positions from the query, and the first ``sinks`` keys.

    The window reaches to both sides of the query; a causal mask takes the later side away. A query that may attend none
    of these keys, as in padding, gives 0.

    Args:
        window: at least 1, which is the query's own position.
        sinks: at least 0.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of its range.

    Source: arXiv:2004.05150, arXiv:2309.17453.
    """

    window: int
    sinks: int = 0

    def __post_init__(self) -> None:
        for field, least in (("window", 1), ("sinks", 0)):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"Window: {field} must be an int: got {value!r}; pass a whole number, as in Window(64)")
            if not least <= value < 2**31:
                raise ValueError(f"Window: {field} must be between {least} and 2**31 - 1: got {value}; try Window(64)")
        super().__post_init__()

    @property
    def name(self) -> str:
        """``window-64``, or ``window-64-s4`` with sinks."""
        return f"window-{self.window}" + (f"-s{self.sinks}" if self.sinks else "")

    @classmethod
    def from_name(cls, name: str) -> Window | None:
        """The method that ``name`` stands for, or None where it is not a window's name."""
        match = _NAME.fullmatch(name)
        return cls(int(match["window"]), int(match["sinks"] or 0)) if match else None

    @property
    def looks_at_positions(self) -> bool:
        """True."""
        return True

    def keeps_all(self, q_len: int, kv_len: int) -> bool:
        """True where the window reaches all keys from every query, or all keys are sinks."""
        return max(q_len, kv_len) <= self.window or kv_len <= self.sinks

    def glance(self, head_dim: int, itemsize: int) -> Glance:
        """Nothing: the choice needs no score."""
        return Glance(0, 0)

    @property
    def choice(self) -> Choice:
        """By positions."""
        return Choice.WINDOW

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """By position alone."""
        return near_or_first(scores, rows.offset, self.window, self.sinks).expand_as(scores)
