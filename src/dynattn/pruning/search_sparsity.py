"""Searches how much each layer of FTP skips, the mean over the layers being given, by a genetic algorithm.

    judged by   the distance to the dense model's last hidden states, of the static router or of a trained one
    first       shares ∝ 1 / (what skipping that layer alone costs), and such as it with shares moved between layers
    a child     the mean of two schedules of the better half, with shares moved between pairs of layers

The better half stays. Shares are whole thousandths, so that every schedule has the mean that is asked for.

Source: arXiv:2412.11494 for a genetic search with the static router, and for another one once the router is trained.
The first schedules, the sizes, moves and means are this library's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.pruning.decoders import find
from dynattn.pruning.ftp import FTP
from dynattn.pruning.learn_router import distance
from dynattn.pruning.router import Router

_WHOLE = 1000  # a share of 1
_PROBED = _WHOLE // 2  # what one layer skips alone, to see what it costs
_LEAST = 1e-6  # the least cost of a layer, as one that does nothing costs nothing

Shares = tuple[int, ...]


class Searched(NamedTuple):
    """What :func:`search_sparsity` returns.

    Attributes:
        sparsity: the share of the tokens that skip each layer, as :class:`~dynattn.pruning.FTP` takes it.
        distances: the distance to the dense model of the best schedule, for each generation.
    """

    sparsity: tuple[float, ...]
    distances: list[float]


def search_sparsity(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    sparsity: float,
    router: Router | None = None,
    population: int = 20,
    generations: int = 20,
    seed: int = 0,
) -> Searched:
    """Find a schedule under which the model stays near the dense one.

    It takes ``layers + population + (generations - 1) · population / 2`` forwards of every batch.

    Args:
        model: a decoder in eval mode.
        batches: texts to judge by: keyword arguments of the model, such as ``input_ids`` and ``attention_mask``.
        sparsity: the mean of the shares, from 0 to 1.
        router: who chooses the tokens; None for the static router.
        population: how many schedules there are, 2 or more.
        generations: how often the better half has children, the first population included.
        seed: of the draws.

    Returns:
        The best schedule, and the way there.

    Raises:
        ValueError: ``sparsity`` is not between 0 and 1, a count is too small, no batch came, or the model is of another
            kind or in training.

    Source: arXiv:2412.11494.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"search_sparsity: sparsity must be between 0 and 1: got {sparsity}; 0.2 skips a fifth")
    for name, value, least in (("population", population, 2), ("generations", generations, 1)):
        if value < least:
            raise ValueError(f"search_sparsity: {name} must be at least {least}: got {value}; try 20")
    if model.training:
        raise ValueError("search_sparsity: the model must be in eval mode, as dropout blurs the distance: call eval()")
    decoder, drawn = find(model), random.Random(seed)
    judge, layers = _Judge(decoder.runner, list(batches), router), len(decoder.layers)
    total = round(sparsity * layers * _WHOLE)
    costs = [judge(tuple(_PROBED * (at == layer) for at in range(layers))) for layer in range(layers)]
    first = _in_proportion([1 / max(cost, _LEAST) for cost in costs], total)
    living = [first, *(_moved(first, layers, drawn) for _ in range(population - 1))]
    ranked = sorted((judge(shares), shares) for shares in living)
    best = [ranked[0][0]]
    for _ in range(generations - 1):
        ranked = ranked[: -(-population // 2)]
        while len(ranked) < population:
            (_, one), (_, other) = drawn.choices(ranked[: -(-population // 2)], k=2)
            child = _moved(_mean(one, other), drawn.randint(1, max(1, layers // 4)), drawn)
            ranked.append((judge(child), child))
        ranked.sort()
        best.append(ranked[0][0])
    return Searched(_floats(ranked[0][1]), best)


class _Judge:
    """The mean distance to the dense model over the batches.

    Raises:
        ValueError: there is no batch.
    """

    def __init__(self, runner: nn.Module, batches: Sequence[Mapping[str, Any]], router: Router | None) -> None:
        if not batches:
            raise ValueError("search_sparsity: batches must hold at least one: there is none; pass a text")
        self.runner, self.batches, self.router = runner, batches, router
        with torch.inference_mode():
            self.dense = [self._states(batch) for batch in batches]

    @torch.inference_mode()
    def __call__(self, shares: Shares) -> float:
        with FTP(_floats(shares), self.router).apply(self.runner):
            pairs = zip(self.batches, self.dense, strict=True)
            found = [float(distance(self._states(batch), dense, _alive(batch, dense))) for batch, dense in pairs]
        return sum(found) / len(found)

    def _states(self, batch: Mapping[str, Any]) -> Tensor:
        return self.runner(**batch, use_cache=False).last_hidden_state


def _alive(batch: Mapping[str, Any], states: Tensor) -> Tensor:
    """(batch, length) bool, False at padding."""
    mask = batch.get("attention_mask")
    return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask.bool()


def _floats(shares: Shares) -> tuple[float, ...]:
    return tuple(share / _WHOLE for share in shares)


def _in_proportion(weights: Sequence[float], total: int) -> Shares:
    """Shares of a given sum in proportion to the weights, none above the whole: the largest ones are cut first."""
    shares = [0] * len(weights)
    left, order = total, sorted(range(len(weights)), key=lambda layer: -weights[layer])
    for place, layer in enumerate(order):
        rest = sum(weights[other] for other in order[place:])
        shares[layer] = min(_WHOLE, round(left * weights[layer] / rest))
        left -= shares[layer]
    return tuple(shares)


def _moved(shares: Shares, moves: int, drawn: random.Random) -> Shares:
    """The shares after some have moved, each from one layer to another, as much as either allows at the most."""
    found = list(shares)
    for _ in range(moves if len(found) > 1 else 0):
        giver, taker = drawn.sample(range(len(found)), 2)
        share = drawn.randint(0, min(found[giver], _WHOLE - found[taker]))
        found[giver] -= share
        found[taker] += share
    return tuple(found)


def _mean(one: Shares, other: Shares) -> Shares:
    """The mean of two schedules of the same sum: odd pairs, whose number is even, round down and up by turns."""
    found, up = [], 0
    for a, b in zip(one, other, strict=True):
        odd = (a + b) % 2
        found.append((a + b + odd * up) // 2)
        up ^= odd
    return tuple(found)
