"""FTP: a token of a decoder skips single layers, and comes back in the next one.

    layer l:   h'_i = h_i            for a token that skips it: it has no query, key or value there either
               h'_i = layer(h)_i     for the others, on these tokens alone, at their true positions

The static router keeps the first token and the last ones of each layer; a learned one looks at each token's position,
attention score, rank and the layer's sparsity (:mod:`dynattn.pruning.router`), and lets the first token run always.
Every token runs a layer whose sparsity is 0. Decoding with a cache is not built: :mod:`dynattn.pruning.skipping`
refuses it.

Source: arXiv:2412.11494.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from dynattn.methods import share
from dynattn.pruning.base import NUMBER, TokenMethod
from dynattn.pruning.router import RUN, SKIP, Router, score, static
from dynattn.pruning.skipping import Choice, Ran, Way, skipped
from dynattn.pruning.work import Trace

_NAME = re.compile(rf"ftp-({NUMBER}(?:-{NUMBER})*)")


@final
@dataclass(frozen=True)
class FTP(TokenMethod):
    """Let tokens skip layers.

    Args:
        sparsity: the share of the tokens that skip each layer, from 0 to 1; or a single one for all layers.
        router: chooses the tokens, and with them how many there really are; None for the static router, which keeps
            the first token and the last ones. The static choice depends on where the text ends, and suits prompts.

    Raises:
        TypeError: ``sparsity`` is neither a number nor a tuple of numbers, or ``router`` no Router.
        ValueError: a share is not between 0 and 1.

    Source: arXiv:2412.11494.
    """

    sparsity: tuple[float, ...]
    router: Router | None = None

    def __init__(self, sparsity: float | tuple[float, ...], router: Router | None = None) -> None:
        given = sparsity if isinstance(sparsity, tuple) else (sparsity,)
        if not given or any(not isinstance(s, (int, float)) or isinstance(s, bool) for s in given):
            raise TypeError(f"FTP: sparsity must be a number or a tuple of numbers: got {sparsity!r}; try 0.2")
        if any(not 0 <= s <= 1 for s in given):
            raise ValueError(f"FTP: sparsity must be between 0 and 1: got {sparsity!r}; 0.2 skips a fifth")
        if router is not None and not isinstance(router, Router):
            raise TypeError(
                f"FTP: router must be a Router: got {router!r}; train one, or read it by Router.load(folder)"
            )
        object.__setattr__(self, "sparsity", tuple(float(s) for s in given))
        object.__setattr__(self, "router", router)

    @property
    def name(self) -> str:
        """``ftp-SPARSITY``, or ``ftp-`` and those of all layers; ``ftp-routed-…`` with a router, not in names."""
        return "ftp-" + "routed-" * (self.router is not None) + "-".join(map(share.text, self.sparsity))

    @classmethod
    def from_name(cls, name: str) -> FTP | None:
        match = _NAME.fullmatch(name)
        return cls(tuple(map(float, match[1].split("-")))) if match else None

    @property
    def looks_ahead(self) -> bool:
        """Whether a token's choice depends on what stands behind it, so that its likelihood says nothing."""
        return self.router is None or self.router.look_ahead

    def of_layers(self, layers: int) -> tuple[float, ...]:
        """The share of the tokens that skip each layer.

        Args:
            layers: the number of layers of the model.

        Raises:
            ValueError: the method has shares for another number of layers.
        """
        if len(self.sparsity) == 1:
            return self.sparsity * layers
        if len(self.sparsity) != layers:
            raise ValueError(
                f"FTP: there must be one sparsity for each layer: the model has {layers}, the method "
                f"{len(self.sparsity)}; give one for all"
            )
        return self.sparsity

    def way(self, layers: int, alive: Tensor) -> Way:
        """The state for one forward.

        Args:
            layers: the number of layers of the model.
            alive: (batch, length) bool, False at padding.
        """
        sparsity = self.of_layers(layers)
        return _Static(sparsity, alive) if self.router is None else Routed(sparsity, alive, self.router)

    def apply(self, model: nn.Module, *, zero_pruned: bool = False) -> AbstractContextManager[Trace]:
        """While active, the model's layers compute the tokens alone that run them.

            with FTP(0.2).apply(model) as trace:
                output = model(**inputs)
            trace.last.skipped                        # the share of (token, layer) pairs that were skipped

        The model runs without a key-value cache, and cannot be compiled. On exit, also by an exception, it is exactly
        what it was.

        Args:
            model: a decoder of Transformers, of a type that :data:`dynattn.pruning.decoders.SUPPORTED` names.
            zero_pruned: nothing: no token is gone.

        Returns:
            A context manager, whose value records what each forward did.

        Raises:
            ValueError: the model is of another kind, or is being pruned already.
        """
        return skipped(model, self.way, watches=self.router is not None)


class _Static(Way):
    """The first token and the last ones."""

    def __init__(self, sparsity: tuple[float, ...], alive: Tensor) -> None:
        self.sparsity, self.alive = sparsity, alive

    def choose(self, layer: int) -> Choice:
        return Choice(static(self.alive, self.sparsity[layer]))


class Routed(Way):
    """What a router says, by the scores of the layer that each token ran last. The learning of routers inherits it."""

    def __init__(self, sparsity: tuple[float, ...], alive: Tensor, router: Router) -> None:
        self.sparsity, self.alive, self.router = sparsity, alive, router
        self.score: Tensor = torch.ones(alive.shape, device=alive.device)
        self.first = alive & (alive.cumsum(1) == 1)

    def logits(self, layer: int) -> Tensor:
        """(batch, length, 2), what the router says before a layer."""
        return self.router(self.alive, self.score, self.sparsity[layer])

    def runs(self, logits: Tensor) -> Tensor:
        """(batch, length) bool: the first token, and those that the router would rather run."""
        return (logits[..., RUN] >= logits[..., SKIP]) | self.first

    def choose(self, layer: int) -> Choice | None:
        return Choice(self.runs(self.logits(layer))) if self.sparsity[layer] else None

    def attended(self, ran: Ran) -> None:
        found = score(ran, self.router.look_ahead).to(self.score.dtype)
        before = self.score.gather(1, ran.position)
        self.score = self.score.scatter(1, ran.position, torch.where(ran.runs, found, before))
