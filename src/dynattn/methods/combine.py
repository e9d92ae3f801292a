"""Methods that keep what several methods keep, or what all of them keep.

    Union:         kept(i, j) ⇔ some part keeps (i, j)
    Intersection:  kept(i, j) ⇔ every part keeps (i, j)

Each part chooses among all allowed pairs, as if it were alone. A query for which no pair is left gives 0, with
logsumexp -inf and kept mass 0.

Blocks of one size are joined as blocks, and N:M chooses in the blocks that an intersection keeps what it would choose
alone, as long as each of its groups of keys lies in one block: the kernels then skip what is dropped. A window beside
one of these, beside N:M or beside a method of rows is a reach: kernels join its pairs to what the other method chooses,
or cut the choice down to them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import ClassVar, cast, final

from torch import Tensor
from typing_extensions import Self

from dynattn.methods import grammar
from dynattn.methods.base import Choice, Glance, Method, PairMethod, Reach, RowRule, Rows
from dynattn.methods.blocks import Blocks
from dynattn.methods.nm import NM
from dynattn.methods.registry import register
from dynattn.methods.window import Window


@dataclass(frozen=True)
class _Combination(PairMethod):
    parts: tuple[PairMethod, ...]

    sign: ClassVar[str]
    looser: ClassVar[str]
    of_both: ClassVar[Callable[[Tensor, Tensor], Tensor]]

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
        # found here, since a compiler that traces a call knows no numbers of a second method of the class
        object.__setattr__(self, "_blocks", self._joined_as_blocks())
        object.__setattr__(self, "_chooser", None if self.blocks else self._beside_a_window())
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

    @abstractmethod
    def _joined_as_blocks(self) -> tuple[PairMethod, ...]:
        """The parts whose whole blocks, joined, are the combination's; none where it has no whole blocks."""

    @property
    def blocks(self) -> tuple[PairMethod, ...]:
        """The parts that keep whole blocks, where those can be joined as blocks; else none."""
        return self.__dict__["_blocks"]

    @property
    def chooser(self) -> PairMethod | None:
        """Where kernels take one part, a window, for a reach: the other parts. Else None."""
        return self.__dict__["_chooser"]

    def _beside_a_window(self) -> PairMethod | None:
        windows = [part for part in self.parts if isinstance(part, Window)]
        others = tuple(part for part in self.parts if not isinstance(part, Window))
        if len(windows) != 1 or not others:
            return None
        chooser = others[0] if len(others) == 1 else type(self)(others)
        known = chooser.choice in (Choice.GROUPS, Choice.ROWS, Choice.BLOCKS)
        return chooser if known and not chooser.beside_window else None

    @property
    def _reach(self) -> Reach | None:
        """The window that kernels take for a reach."""
        if self.chooser is None:
            return None
        return next(Reach(part.window, part.sinks) for part in self.parts if isinstance(part, Window))

    @property
    def choice(self) -> Choice:
        """As the parts beside a window choose; N:M among all pairs as in one block that is kept."""
        if self.chooser is None:
            return Choice.BLOCKS if self.blocks else Choice.PAIRS
        return Choice.BLOCKS if self.chooser.choice is Choice.GROUPS else self.chooser.choice

    def row_rule(self) -> RowRule:
        """What a row keeps before a window is joined to it, or cuts it."""
        return super().row_rule() if self.chooser is None else self.chooser.row_rule()

    @property
    def whole_blocks(self) -> int:
        """The size of the parts' blocks where blocks alone decide, or blocks and N:M inside, or these and a window;
        else 0."""
        if self.chooser is not None:
            return int(self.chooser.whole_blocks)
        return int(self.blocks[0].whole_blocks) if self.blocks else 0

    @property
    def inside_blocks(self) -> PairMethod | None:
        """The N:M method among what is beside a window."""
        return self._inside_chooser()

    def _inside_chooser(self) -> PairMethod | None:
        if isinstance(self.chooser, NM):
            return self.chooser
        return None if self.chooser is None else cast("PairMethod | None", self.chooser.inside_blocks)

    def choose_blocks(self, query: Tensor, key: Tensor, attn_mask: Tensor | None, causal: bool, scale: float) -> Tensor:
        """The parts' blocks, joined; without those of a window."""
        if self.chooser is not None:
            return self.chooser.choose_blocks(query, key, attn_mask, causal, scale)
        chosen = (part.choose_blocks(query, key, attn_mask, causal, scale) for part in self.blocks)
        return reduce(type(self).of_both, chosen)

    def glance(self, head_dim: int, itemsize: int) -> Glance | None:
        """The sum of what the parts' choices cost; None where one of them needs exact scores.

        N:M inside of kept blocks needs those of the kept blocks alone, and costs nothing besides.
        """
        parts = [part for part in self.parts if not self.blocks or part is not self.inside_blocks]
        found = [None if part.scored is not None else part.glance(head_dim, itemsize) for part in parts]
        glances = [glance for glance in found if glance is not None]
        if len(glances) < len(parts):
            return None
        return Glance(sum(each.multiply_adds for each in glances), sum(each.key_bytes for each in glances))

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        """The parts' choices, joined."""
        return reduce(type(self).of_both, (part.choose(scores, rows) for part in self.parts))


def _of_one_size(parts: tuple[PairMethod, ...]) -> tuple[PairMethod, ...]:
    """The parts, where all keep whole blocks of one size and all pairs of these; else none."""
    size = parts[0].whole_blocks if parts else 0
    return parts if size and all(part.whole_blocks == size and _is_blocks_alone(part) for part in parts) else ()


def _is_blocks_alone(part: PairMethod) -> bool:
    return part.inside_blocks is None and not part.beside_window


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
    of_both = or_

    @property
    def keeps_everything(self) -> bool:
        """True where a part is dense."""
        return any(part.keeps_everything for part in self.parts)

    @property
    def joined(self) -> Reach | None:
        """The window beside other parts."""
        return self._reach

    def _joined_as_blocks(self) -> tuple[PairMethod, ...]:
        """All parts but windows that the forced blocks of another part hold."""
        return _of_one_size(tuple(part for part in self.parts if not self._covered(part)))

    def _covered(self, part: PairMethod) -> bool:
        return isinstance(part, Window) and any(
            isinstance(other, Blocks) and other.covers(part.window, part.sinks) for other in self.parts
        )


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
    of_both = and_

    @property
    def keeps_everything(self) -> bool:
        """True where all parts are dense."""
        return all(part.keeps_everything for part in self.parts)

    def _joined_as_blocks(self) -> tuple[PairMethod, ...]:
        """All parts but one N:M method with groups of keys that do not reach beyond a block."""
        inside = self._inside
        blocks = _of_one_size(tuple(part for part in self.parts if part is not inside))
        fits = not blocks or inside is None or int(blocks[0].whole_blocks) % (inside.m * inside.stride) == 0
        return blocks if fits else ()

    @property
    def within(self) -> Reach | None:
        """The window beside other parts."""
        return self._reach

    @property
    def inside_blocks(self) -> PairMethod | None:
        """The N:M method among the parts, where the others keep whole blocks, or beside a window."""
        return self._inside if self.blocks else self._inside_chooser()

    @property
    def scored(self) -> PairMethod | None:
        """What keeps the blocks, where N:M chooses in them."""
        if not self.blocks or self.inside_blocks is None:
            return None
        return self.blocks[0] if len(self.blocks) == 1 else Intersection(self.blocks)

    @property
    def _inside(self) -> NM | None:
        return next((part for part in self.parts if isinstance(part, NM)), None)
