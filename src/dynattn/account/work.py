"""What a computation costs, in units that no machine changes: multiply-adds, exponentials, bytes."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Work:
    """Costs of a computation; add them up with ``+``.

    Attributes:
        scores: multiply-adds of the exact scores, QKᵀ.
        choosing: multiply-adds of what a choice is made from, where that is not the exact scores.
        values: multiply-adds of the product with V.
        exponentials: of the softmax.
        linear: multiply-adds of everything that is not attention: the layers' weights times the tokens.
        read: bytes from DRAM.
        written: bytes to DRAM.
    """

    scores: float = 0
    choosing: float = 0
    values: float = 0
    exponentials: float = 0
    linear: float = 0
    read: float = 0
    written: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def multiply_adds(self) -> float:
        """All of them."""
        return self.scores + self.choosing + self.values + self.linear

    @property
    def bytes(self) -> float:
        """To and from DRAM."""
        return self.read + self.written
