"""Weights that ask for gradients for a while, or do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def gradients(weights: Iterable[Tensor], wanted: bool) -> Iterator[None]:
    """While active, weights ask for gradients, or none does; afterwards each does what it did.

    Args:
        weights: leaves of the graph, such as a model's parameters.
        wanted: whether they ask.
    """
    before = [(weight, weight.requires_grad) for weight in weights]
    try:
        for weight, _ in before:
            weight.requires_grad_(wanted)
        yield
    finally:
        for weight, asked in before:
            weight.requires_grad_(asked)
