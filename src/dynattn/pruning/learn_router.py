"""Learns FTP's router with the model frozen: to skip as much as asked for, and to stay near the dense model.

    start  the router imitates the static router on the first batch: the guide alone
    steps  loss = distillation + price · sparsity + 0.5^(10 · step / steps) · guide
    end    the bias of the logit of skipping moves until the last batches skip as much as asked for

    distillation = Σ |h - h_dense|² / Σ |h_dense|²          of the last hidden states, over the tokens
    sparsity     = max(0, mean over layers of (s_l - share of the tokens that skip layer l))
    guide        = mean cross-entropy of the router's logits against the static router's choice

A token's choice is hard; its gradient is that of the softmax of its two logits. It reaches the loss by what the layer
makes of the token, and not by the token's key and value, which others attend to. Such a gradient tells where to go as
long as few tokens have moved: where most of them skip, the distance to the dense model hardly depends on any one of
them. Hence the start, at as much as is asked for, and the small steps. A share that is missing must cost more than it
gains: the distance grows by two to four times the share that skips, so that at a price of 1 skipping nothing is best.

Source: arXiv:2412.11494 for the three terms. The start, the end, how the hard choice is trained, the forms of the terms
and their weights are this library's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynattn.maths.scores import arithmetic_dtype
from dynattn.nn.parameters import gradients
from dynattn.pruning.decoders import find
from dynattn.pruning.ftp import FTP, Routed
from dynattn.pruning.router import RUN, SKIP, Router, static
from dynattn.pruning.skipping import Choice, skipped

_IMITATION, _IMITATION_RATE = 200, 1e-2  # steps of the start, which ask for the small network alone
_HALVINGS = 10  # how often the weight of the guide halves until the last step
_SETTLED_BY, _REACH, _BISECTIONS = 2, 8.0, 9  # batches, the largest move of the bias, forwards of each batch


class LearntRouter(NamedTuple):
    """What :func:`learn_router` returns.

    Attributes:
        method: the method with its router, in eval mode.
        distillation: the relative squared distance to the dense model's last hidden states, for each step.
        skipped: the share of (token, layer) pairs that were skipped, for each step.
        guide: the cross-entropy against the static router's choice, for each step.
        reached: the share that the last batches skip in the end.
    """

    method: FTP
    distillation: list[float]
    skipped: list[float]
    guide: list[float]
    reached: float


class SoftRouted(Routed):
    """A router's choices with gradients, and what they are judged by.

    Attributes:
        shares: the share of the tokens that skip each layer so far, with a gradient.
        guides: the cross-entropy of each layer so far that tokens may skip.
    """

    soft = True

    def __init__(self, sparsity: tuple[float, ...], alive: Tensor, router: Router) -> None:
        super().__init__(sparsity, alive, router)
        self.shares: list[Tensor] = []
        self.guides: list[Tensor] = []

    def choose(self, layer: int) -> Choice | None:
        if not self.sparsity[layer]:
            self.shares.append(torch.zeros((), device=self.alive.device))
            return None
        logits = self.logits(layer)
        runs = self.runs(logits)
        likely = logits.softmax(-1)[..., RUN]
        weight = runs.to(likely.dtype) + (likely - likely.detach()).masked_fill(self.first, 0.0)
        self.shares.append(1 - weight[self.alive].mean())
        wanted = _imitated(self.alive, self.sparsity[layer])
        self.guides.append(F.cross_entropy(logits[self.alive], wanted))
        return Choice(runs, weight)

    def too_few(self) -> Tensor:
        """The sparsity term: by how much less than asked for is skipped; skipping more costs nothing here."""
        return (sum(self.sparsity) / len(self.sparsity) - torch.stack(self.shares).mean()).clamp(min=0)


class _Watched(Routed):
    """Every token runs, and what a router would look at is noted, beside what the static one says."""

    def __init__(self, sparsity: tuple[float, ...], alive: Tensor, router: Router) -> None:
        super().__init__(sparsity, alive, router)
        self.inputs: list[Tensor] = []
        self.wanted: list[Tensor] = []

    def choose(self, layer: int) -> None:
        if self.sparsity[layer]:
            self.inputs.append(self.router.inputs(self.alive, self.score, self.sparsity[layer])[self.alive])
            self.wanted.append(_imitated(self.alive, self.sparsity[layer]))


def learn_router(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    sparsity: float | tuple[float, ...],
    router: Router,
    price: float = 10.0,
    rate: float = 3e-3,
) -> LearntRouter:
    """Train a router on texts. The model's weights are left alone; no labels are needed.

    Memory is quadratic in length, as masks of all pairs are made. A router that does not look ahead knows positions by
    their number alone: train it on texts about as long as those that it shall read.

    Args:
        model: a decoder in eval mode, with ``attn_implementation`` ``sdpa``.
        batches: what to learn from, a step each: keyword arguments of the model, such as ``input_ids`` and
            ``attention_mask``.
        sparsity: as :class:`~dynattn.pruning.FTP` takes it.
        router: to train; its weights change.
        price: the factor of the sparsity term. It should be above what skipping a little more costs in distillation.
        rate: the learning rate of the first step, by Adam; it falls evenly to 0.

    Returns:
        The method, and the way there.

    Raises:
        ValueError: the rate or the price is not positive, nothing is to be skipped, the model is in training or of
            another kind, or no batch came.

    Source: arXiv:2412.11494.
    """
    for name, value, remedy in (("rate", rate, "3e-3"), ("price", price, "10")):
        if not value > 0:
            raise ValueError(f"learn_router: {name} must be positive: got {value}; try {remedy}")
    if model.training:
        raise ValueError("learn_router: the model must be in eval mode, as dropout blurs the loss: call model.eval()")
    runner, method, steps = find(model).runner, FTP(sparsity, router.train()), list(batches)
    if not any(method.sparsity):
        raise ValueError(f"learn_router: sparsity must be above 0 in some layer: got {sparsity}; 0.2 skips a fifth")
    if not steps:
        raise ValueError("learn_router: batches must hold at least one: there is none; a generator is read only once")
    distances: list[float] = []
    shares: list[float] = []
    guides: list[float] = []
    with gradients(model.parameters(), False):
        _imitate(runner, steps[0], method, router)
        optimizer = torch.optim.Adam(router.parameters(), lr=rate)
        for step, batch in enumerate(steps):
            done = step / len(steps)
            found, way = _forward(runner, batch, method, router)
            guide, share = torch.stack(way.guides).mean(), torch.stack(way.shares).mean()
            _step(optimizer, rate * (1 - done), found + price * way.too_few() + 0.5 ** (_HALVINGS * done) * guide)
            for noted, value in ((distances, found), (shares, share), (guides, guide)):
                noted.append(value.item())
    router.eval()
    return LearntRouter(method, distances, shares, guides, _settle(runner, steps[-_SETTLED_BY:], method, router))


def distance(found: Tensor, dense: Tensor, alive: Tensor) -> Tensor:
    """The distillation term, a scalar: ``Σ |h - h_dense|² / Σ |h_dense|²`` over the tokens.

    Args:
        found: (batch, length, width), the last hidden states.
        dense: (batch, length, width), those of the dense model.
        alive: (batch, length) bool, False at padding.
    """
    wide = arithmetic_dtype(dense.dtype)  # a sum of squares overflows in float16
    kept, wanted = (states[alive].to(wide) for states in (found, dense))
    return (kept - wanted).square().sum() / wanted.square().sum()


def _imitated(alive: Tensor, sparsity: float) -> Tensor:
    """(tokens,) int64, the static router's choice for each token that is no padding."""
    return torch.where(static(alive, sparsity), RUN, SKIP)[alive]


def _step(optimizer: torch.optim.Optimizer, rate: float, loss: Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _imitate(runner: nn.Module, batch: Mapping[str, Any], method: FTP, router: Router) -> None:
    """Train the router to choose as the static one does, by what it sees where every token runs."""
    ways: list[_Watched] = []

    def begin(layers: int, alive: Tensor) -> _Watched:
        ways.append(_Watched(method.of_layers(layers), alive, router))
        return ways[-1]

    with torch.no_grad(), skipped(runner, begin, watches=True):
        runner(**batch)
    weight = next(router.parameters())
    inputs = torch.cat(ways[0].inputs).to(weight.device, weight.dtype)
    wanted = torch.cat(ways[0].wanted).to(weight.device)
    optimizer = torch.optim.Adam(router.parameters())
    for step in range(_IMITATION):
        _step(optimizer, _IMITATION_RATE * (1 - step / _IMITATION), F.cross_entropy(router.logits(inputs), wanted))


def _forward(
    runner: nn.Module, batch: Mapping[str, Any], method: FTP, router: Router
) -> tuple[Tensor, SoftRouted]:  # fmt: skip
    """The distillation term of a batch, and the way by which the layers went."""
    ways: list[SoftRouted] = []

    def begin(layers: int, alive: Tensor) -> SoftRouted:
        ways.append(SoftRouted(method.of_layers(layers), alive, router))
        return ways[-1]

    with skipped(runner, begin, watches=True):
        hidden = runner(**batch).last_hidden_state
    with torch.no_grad():
        dense = runner(**batch, use_cache=False).last_hidden_state
    return distance(hidden, dense, ways[0].alive), ways[0]


@torch.no_grad()
def _settle(runner: nn.Module, batches: Sequence[Mapping[str, Any]], method: FTP, router: Router) -> float:
    """Move the bias of skipping until the batches skip as much as asked for, by bisection; returns what they skip."""
    bias = list(router.parameters())[-1]
    start, low, high = bias[SKIP].clone(), -_REACH, _REACH
    tried: list[tuple[float, float, float]] = []  # how far from what is asked for, the move, the share
    for _ in range(_BISECTIONS):
        move = (low + high) / 2 if tried else 0.0
        bias[SKIP] = start + move
        found, asked = _shares(runner, batches, method)
        tried.append((abs(found - asked), move, found))
        low, high = (move, high) if found < asked else (low, move)
    _, move, found = min(tried)
    bias[SKIP] = start + move
    return found


def _shares(runner: nn.Module, batches: Sequence[Mapping[str, Any]], method: FTP) -> tuple[float, float]:
    """The share of (token, layer) pairs that the batches skip, and the one that is asked for."""
    ran = present = 0
    with method.apply(runner) as trace:
        for batch in batches:
            runner(**batch)
            layers = trace.last.layers
            ran += int(trace.last.tokens.sum())
            present += len(layers) * int(layers[0].notes["present"].sum())
    shares = method.of_layers(len(layers))
    return 1 - ran / present, sum(shares) / len(shares)
