"""The costs of a computation, in units that do not depend on a machine: multiply-adds, exponentials, bytes."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Work:
    """The costs of a computation. Costs are added with ``+``.

    Attributes:
        scores: the multiply-adds of the exact scores, QKᵀ.
        choosing: the multiply-adds of making a choice from something other than the exact scores.
        values: the multiply-adds of the product with V.
        exponentials: the exponentials of the softmax.
        linear: the multiply-adds of everything that is not attention: the layers' weights times the tokens.
        read: the bytes read from DRAM.
        written: the bytes written to DRAM.
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
        """All multiply-adds together."""
        return self.scores + self.choosing + self.values + self.linear

    @property
    def bytes(self) -> float:
        """All bytes that go to and from DRAM."""
        return self.read + self.written
