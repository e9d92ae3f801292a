"""Tells what methods leave out while a model runs: of each linear layer, the entries that were kept, and certificates.

with method.apply(model), watching() as seen:
    model(**inputs)
seen["3.down"].density, seen["3.down"].kept_share, seen["3.down"].bound
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from dynattn.sparsity.activations.certificate import bound, kept_share
from dynattn.sparsity.sites import Site


class Chosen(NamedTuple):
    """One run of a linear layer under a method.

    Attributes:
        module: the linear layer.
        site: where it stands.
        keep: (tokens, in) bool, or (tokens, out) where outputs are left out.
        x: (tokens, in), the whole input.
        norms: (in,), the lengths of this layer's own weights by input; None where outputs are left out, or where some
            of the input was not even computed.
        outputs: whether outputs are left out, and not inputs.
        made: whether the choice was made for this layer, and not for one before that reads the same input.
    """

    module: Any
    site: Site
    keep: Tensor
    x: Tensor
    norms: Tensor | None
    outputs: bool
    made: bool


class Counts(NamedTuple):
    """Weights of a run of a linear layer.

    Attributes:
        spared: multiply-adds that were not needed.
        unread: weights that no token needed.
    """

    spared: int
    unread: int


@dataclass
class Seen:
    """What was seen at one site.

    Attributes:
        kept: so many entries were kept, of all tokens.
        entries: of so many.
        tokens: in so many rows.
        shares: the sum of their kept shares; None where there is no certificate.
        bound: the largest bound on a row's error; None likewise.
    """

    kept: int = 0
    entries: int = 0
    tokens: int = 0
    shares: float | None = None
    bound: float | None = None

    @property
    def density(self) -> float:
        """The share of the entries that were kept, as measured."""
        return self.kept / max(1, self.entries)

    @property
    def kept_share(self) -> float | None:
        """The mean over tokens of :func:`dynattn.sparsity.kept_share`."""
        return None if self.shares is None else self.shares / max(1, self.tokens)

    def add(self, chosen: Chosen) -> None:
        """Count a run."""
        self.kept += int(chosen.keep.sum())
        self.entries += chosen.keep.numel()
        self.tokens += len(chosen.keep)
        if chosen.norms is None or chosen.keep.numel() == 0:
            return
        self.shares = (self.shares or 0.0) + float(kept_share(chosen.x, chosen.keep, chosen.norms).sum())
        self.bound = max(self.bound or 0.0, float(bound(chosen.x, chosen.keep, chosen.norms).max()))


_observers: list[Callable[[Chosen], None]] = []


def observed() -> bool:
    """Whether anyone observes."""
    return bool(_observers)


def show(module: Any, site: Site, keep: Tensor, x: Tensor, norms: Tensor | None, outputs: bool, made: bool) -> None:
    """Show a run to everyone who observes; nothing is done where nobody does."""
    for observer in tuple(_observers):
        observer(Chosen(module, site, keep, x.detach(), norms, outputs, made))


def counts(chosen: Chosen) -> Counts:
    """What a run spared."""
    first, second = chosen.module.weight.shape
    beside = first * second // chosen.keep.shape[1]
    return Counts(
        spared=int((~chosen.keep).sum()) * beside,
        unread=int((~chosen.keep.any(0)).sum()) * beside if len(chosen.keep) else first * second,
    )


@contextmanager
def observing(callback: Callable[[Chosen], None]) -> Iterator[None]:
    """While active, every run of a linear layer under a method is first shown to ``callback``.

    Args:
        callback: gets a :class:`Chosen`. An exception in it ends the model's forward.
    """
    _observers.append(callback)
    try:
        yield
    finally:
        _observers.remove(callback)


@contextmanager
def watching() -> Iterator[dict[str, Seen]]:
    """While active, count what methods keep, site by site.

    Yields:
        What was seen, by :attr:`Site.name`, filled as a model runs.
    """
    seen: dict[str, Seen] = {}
    with observing(lambda chosen: seen.setdefault(chosen.site.name, Seen()).add(chosen)):
        yield seen
