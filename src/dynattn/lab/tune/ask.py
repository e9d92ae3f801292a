"""What a run asks to be measured by others, before it needs the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol


class Ask(NamedTuple):
    """Something to measure.

    Attributes:
        key: its name in the store.
        kind: ``harm`` of candidates by a text; ``lost`` by an assignment on the search's data; ``dense`` and ``own``
            scores of an entry of the proof.
        names: candidates.
        assignment: the method of each head.
        part: which of the proofs.
        exam: which exam of the part.
        entry: which entry of it.
    """

    key: str
    kind: Literal["harm", "lost", "dense", "own"]
    names: tuple[str, ...] = ()
    assignment: dict[str, tuple[str, ...]] | None = None
    part: int = 0
    exam: int = 0
    entry: int = 0


class Asked(Protocol):
    """Those who are asked."""

    @property
    def at_once(self) -> int:
        """How many questions are worth asking together; 0 where none are."""
        ...

    def ask(self, asks: Sequence[Ask], advance: Callable[[], None] = ...) -> None:
        """Have the store get the answers."""
        ...
