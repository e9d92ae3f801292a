"""What SnapKV and Ada-SnapKV share: the options, how names say them, what tokens are chosen by, and how they are made.

    received_j = what token j receives from the last ``window`` queries, by key head
    score      = mean of received over ``pool`` neighbouring tokens
    rank       = score, with the first ``sinks`` and the latest ``recent`` tokens before all others

The defaults are those of The Sparse Frontier, arXiv:2504.17768.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from dynattn.integrations.transformers import Call
from dynattn.kv_caches.counts import check_counts, check_odd
from dynattn.kv_caches.cut_once import CutOnceCache, CutOnceLayer
from dynattn.kv_caches.observed import observed, ranked, text_of

_LETTERS = {"q": "window", "p": "pool", "r": "recent", "s": "sinks"}
_NAME = re.compile(r"(\d+)((?:-[qprs]\d+)*)")


@dataclass(frozen=True)
class Options:
    """What a prompt is cut by; see :class:`dynattn.kv_caches.SnapKVCache`."""

    capacity: int = 1024
    window: int = 256
    pool: int = 21
    recent: int = 128
    sinks: int = 4

    def check(self, owner: str) -> None:
        """Raise unless the options fit each other.

        Args:
            owner: the class whose options they are.

        Raises:
            TypeError: one is no int.
            ValueError: one is out of range.
        """
        check_counts(owner, capacity=self.capacity, window=self.window, pool=self.pool)
        check_counts(owner, least=0, recent=self.recent, sinks=self.sinks)
        check_odd(owner, pool=self.pool)
        if self.recent + self.sinks > self.capacity:
            raise ValueError(
                f"{owner}: capacity must hold the latest and the first tokens: got {self.capacity} for "
                f"{self.recent} + {self.sinks}; pass a smaller recent"
            )

    @property
    def name(self) -> str:
        """The capacity, and every option that is not the default: ``256-r64``."""
        others = [f"-{letter}{getattr(self, name)}" for letter, name in _LETTERS.items()
                  if getattr(self, name) != getattr(Options, name)]  # fmt: skip
        return f"{self.capacity}{''.join(others)}"

    @classmethod
    def from_name(cls, name: str) -> Options | None:
        """The options that :attr:`name` says; None where it is no such name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        said = [part for part in match[2].split("-") if part]
        if len({part[0] for part in said}) < len(said):  # one option twice
            return None
        return cls(int(match[1]), **{_LETTERS[part[0]]: int(part[1:]) for part in said})

    def rank(self, call: Call, tokens: int, reduce: Literal["sum", "max"], owner: str) -> Tensor:
        """What the tokens of a prompt are chosen by.

        Args:
            call: the attention call over the prompt.
            tokens: how many tokens it has.
            reduce: see :func:`dynattn.kv_caches.observed.observed`.
            owner: the class that asks, for errors.

        Returns:
            (batch, kv_heads, tokens); inf for those that are always held, -inf for padding.
        """
        text = text_of(call, tokens, owner)
        score = nn.functional.avg_pool1d(observed(call, self.window, reduce), self.pool, 1, self.pool // 2)
        return ranked(score, text, self.recent, self.sinks)


class SnapLayer(CutOnceLayer):
    """A layer that is cut by such options."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options


class SnapCache(CutOnceCache):
    """A cache of such layers; see :class:`dynattn.kv_caches.SnapKVCache`."""

    prefix: ClassVar[str]
    layer: ClassVar[type[SnapLayer]]

    def __init__(
        self, capacity: int = 1024, window: int = 256, pool: int = 21, recent: int = 128, sinks: int = 4
    ) -> None:
        self.options = Options(capacity, window, pool, recent, sinks)
        self.options.check(type(self).__name__)
        self.name = f"{self.prefix}-{self.options.name}"
        super().__init__(layer_class_to_replicate=partial(self.layer, self.options))  # type: ignore[arg-type]
