"""Quest: each query keeps whole pages of keys, those whose keys may have the largest scores by a bound, and the latest.

    kept(i, j) ⇔ page(j) is among the budget / page best by value, or holds the last key that i may attend
    value(p)   = Σ over the query heads that share the keys of  Σ_d max(q_d · M_pd, q_d · m_pd)

with M_p and m_p the largest and the least element of the keys of page p in every dimension: what a head adds is an
upper bound of its scores in the page. All query heads of a key head keep the same pages.

Source: Quest, arXiv:2406.10774; the sum over the query heads as in The Sparse Frontier, arXiv:2504.17768.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynattn.maths import pages
from dynattn.methods.base import Glance, PairMethod, Rows
from dynattn.methods.registry import register

_NAME = re.compile(r"quest-(?P<budget>\d+)(?:-p(?P<page>\d+))?")
_PAGE = 16


@final
@register
@dataclass(frozen=True)
class Quest(PairMethod):
    """Keep, for every query, the pages of keys with the largest upper bounds of their scores, and the latest page.

    It is made for decoding, where a query is alone: :class:`dynattn.kv_caches.QuestCache` holds the bounds of every
    page beside its keys, and reads the kept pages alone. Without that cache the bounds are made anew in each call, from
    all keys.

    Pages are counted from key 0. Of a page, the keys that a query may not attend count neither in its bounds nor in its
    output; the page of the last key that it may attend is kept in any case, besides the budget. Ties go to the lower
    page.

    Args:
        budget: how many keys the best pages hold; a multiple of ``page``.
        page: keys of a page, between 1 and 1024.

    Raises:
        TypeError: an argument is no int.
        ValueError: an argument is out of its range.

    Source: arXiv:2406.10774, which leaves the first two layers dense; here all layers choose, as in arXiv:2504.17768.
    """

    budget: int = 1024
    page: int = _PAGE

    def __post_init__(self) -> None:
        for field, most in (("page", 1024), ("budget", 2**31 - 1)):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"Quest: {field} must be an int: got {value!r}; it counts keys, as 16 does")
            if not 1 <= value <= most:
                raise ValueError(f"Quest: {field} must be between 1 and {most}: got {value}; try Quest(1024)")
        if self.budget % self.page:
            raise ValueError(
                f"Quest: budget must be a multiple of page: got {self.budget} and {self.page}; try "
                f"{-(-self.budget // self.page) * self.page}"
            )
        super().__post_init__()

    @property
    def name(self) -> str:
        """``quest-1024``, with ``-p32`` for pages of other than 16 keys."""
        return f"quest-{self.budget}" + (f"-p{self.page}" if self.page != _PAGE else "")

    @classmethod
    def from_name(cls, name: str) -> Quest | None:
        """The method that ``name`` stands for, or None where it is not a name of this method."""
        match = _NAME.fullmatch(name)
        return cls(int(match["budget"]), int(match["page"] or _PAGE)) if match else None

    @property
    def best(self) -> int:
        """How many pages are kept for their bounds."""
        return self.budget // self.page

    def glance(self, head_dim: int, itemsize: int) -> Glance:
        """A product with the largest and one with the least elements of a page."""
        return Glance(2 * head_dim / self.page, 2 * head_dim * itemsize / self.page)

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The best pages and the last one, each with all its keys."""
        allowed = (scores != -math.inf).unflatten(1, (-1, rows.group))  # [batch, kv_heads, group, rows, kv_len]
        query = rows.query.unflatten(1, (-1, rows.group))
        value, some = pages.values(query, rows.key[:, :: rows.group], allowed, self.page, rows.scale)
        position = torch.arange(scores.shape[-1], device=scores.device)
        last = position.where(allowed.any(2), -1)
        last = last.amax(-1) // self.page if scores.shape[-1] else last.sum(-1)
        kept = pages.kept(value, some, last, self.best).repeat_interleave(self.page, -1)[..., : scores.shape[-1]]
        return kept.repeat_interleave(rows.group, 1)
