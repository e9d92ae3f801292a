"""Methods that keep what several methods keep, or what all of them keep.

    Union:         kept(i, j) ⇔ some part keeps (i, j)
    Intersection:  kept(i, j) ⇔ every part keeps (i, j)

Each part chooses among all allowed pairs, as if it were alone. A query for which no pair is left gives 0, with
logsumexp -inf and kept mass 0.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import Self

from dynattn.methods import grammar
from dynattn.methods.base import Glance, Method, PairMethod, Rows
from dynattn.methods.registry import register


@dataclass(frozen=True)
class _Combination(PairMethod):
    parts: tuple[PairMethod, ...]

    sign: ClassVar[str]
    looser: ClassVar[str]
    joined: ClassVar[Callable[[Tensor, Tensor], Tensor]]

    def __post_init__(self) -> None:
        owner = type(self).__name__
        if not isinstance(self.parts, tuple) or not all(isinstance(part, PairMethod) for part in self.parts):
            raise TypeError(
                f"{owner}: parts must be a tuple of methods that keep pairs: got {self.parts!r}; "
                f"try {owner}((NM(1, 2), Window(64)))"
            )
        if len(self.parts) < 2:
            raise ValueError(f"{owner}: parts must be two or more: got {len(self.parts)}")
        object.__setattr__(self, "parts", tuple(grammar.named(owner, part) for part in self.parts))
        super().__post_init__()

    @property
    def name(self) -> str:
        """The parts' names with the sign between them. A part is in brackets where its own sign does not bind more
        closely."""
        return self.sign.join(
            part.name if all(len(grammar.split(part.name, sign)) == 1 for sign in self.looser) else f"({part.name})"
            for part in self.parts
        )

    @classmethod
    def from_name(cls, name: str) -> Self | None:
        """The method that ``name`` stands for, or None where its outermost sign is another."""
        parts = grammar.split(name, cls.sign)
        if len(parts) == 1 or any(len(grammar.split(name, sign)) > 1 for sign in cls.looser if sign != cls.sign):
            return None
        methods = tuple(_pairs(grammar.part(part), name) for part in parts)
        return cls(methods)

    @property
    def rows_together(self) -> int:
        """The least common multiple of what the parts ask for."""
        return math.lcm(*(part.rows_together for part in self.parts))

    @property
    def looks_at_positions(self) -> bool:
        """True where a part does."""
        return any(part.looks_at_positions for part in self.parts)

    @property
    @abstractmethod
    def keeps_everything(self) -> bool: ...

    def glance(self, head_dim: int, itemsize: int) -> Glance | None:
        """The sum of what the parts' choices cost; None where one of them needs the exact scores."""
        parts = [part.glance(head_dim, itemsize) for part in self.parts]
        glances = [part for part in parts if part is not None]
        if len(glances) < len(parts):
            return None
        return Glance(sum(each.multiply_adds for each in glances), sum(each.key_bytes for each in glances))

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The parts' choices, joined."""
        return reduce(type(self).joined, (part.choose(scores, rows) for part in self.parts))


def _pairs(method: Method, name: str) -> PairMethod:
    if not isinstance(method, PairMethod):
        raise ValueError(f"parse: the parts of {name!r} must be methods that keep pairs: got {method.name!r}")
    return method


@final
@register
@dataclass(frozen=True)
class Union(_Combination):
    """Keep what some part keeps; ``a+b`` by name, as in ``topk-0.25+window-64-s4``.

    Args:
        parts: two or more methods that keep pairs.

    Raises:
        TypeError: ``parts`` is not a tuple of such methods.
        ValueError: there is one part alone, or a part is not registered.
    """

    sign = "+"
    looser = "+"
    joined = or_

    @property
    def keeps_everything(self) -> bool:
        """True where a part is dense."""
        return any(part.keeps_everything for part in self.parts)


@final
@register
@dataclass(frozen=True)
class Intersection(_Combination):
    """Keep what every part keeps; ``a&b`` by name, as in ``nm-1-2&window-256`` (quote it in a shell).

    Args:
        parts: two or more methods that keep pairs.

    Raises:
        TypeError: ``parts`` is not a tuple of such methods.
        ValueError: there is one part alone, or a part is not registered.
    """

    sign = "&"
    looser = "+&"
    joined = and_

    @property
    def keeps_everything(self) -> bool:
        """True where all parts are dense."""
        return all(part.keeps_everything for part in self.parts)
