"""Learns FTP's router with the model frozen: to skip enough, and to stay near the dense model.

    loss = distillation + sparsity + 0.5^(step / 200) · guide

    distillation = Σ |h - h_dense|² / Σ |h_dense|²          of the last hidden states, over the tokens
    sparsity     = mean over layers of max(0, s_l - share of the tokens that skip layer l)
    guide        = mean cross-entropy of the router's logits against the static router's choice

A token's choice is hard; its gradient is that of the softmax of its two logits. It reaches the loss by what the layer
makes of the token, and not by the token's key and value, which others attend to.

Source: arXiv:2412.11494 for the three terms. How the hard choice is trained, the forms of the terms, their weights and
the half-life are this library's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

_HALF_LIFE = 200  # steps in which the weight of the guide halves


class LearntRouter(NamedTuple):
    """What :func:`learn_router` returns.

    Attributes:
        method: the method with its router, in eval mode.
        distillation: the relative squared distance to the dense model's last hidden states, for each step.
        skipped: the share of (token, layer) pairs that were skipped, for each step.
        guide: the cross-entropy against the static router's choice, for each step.
    """

    method: FTP
    distillation: list[float]
    skipped: list[float]
    guide: list[float]


class SoftRouted(Routed):
    """A router's choices with gradients, and what they are judged by.

    Attributes:
        shares: the share of the tokens that skip each layer so far, with a gradient.
        guides: the cross-entropy of each layer so far.
    """

    soft = True

    def __init__(self, sparsity: tuple[float, ...], alive: Tensor, router: Router) -> None:
        super().__init__(sparsity, alive, router)
        self.shares: list[Tensor] = []
        self.guides: list[Tensor] = []

    def choose(self, layer: int) -> Choice:
        logits = self.logits(layer)
        runs = logits[..., RUN] >= logits[..., SKIP]
        likely = logits.softmax(-1)[..., RUN]
        weight = runs.to(likely.dtype) + likely - likely.detach()
        self.shares.append(1 - weight[self.alive].mean())
        wanted = torch.where(static(self.alive, self.sparsity[layer]), RUN, SKIP)
        self.guides.append(F.cross_entropy(logits[self.alive], wanted[self.alive]))
        return Choice(runs, weight)

    def too_few(self) -> Tensor:
        """The sparsity term: by how much less than asked for is skipped; skipping more costs nothing here."""
        gaps = [(wanted - found).clamp(min=0) for wanted, found in zip(self.sparsity, self.shares, strict=True)]
        return torch.stack(gaps).mean()


def learn_router(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    sparsity: float | tuple[float, ...],
    router: Router,
    rate: float = 1e-3,
) -> LearntRouter:
    """Train a router on texts. The model's weights are left alone; no labels are needed.

    Memory is quadratic in length, as masks of all pairs are made.

    Args:
        model: a decoder in eval mode, with ``attn_implementation`` ``sdpa``.
        batches: what to learn from, a step each: keyword arguments of the model, such as ``input_ids`` and
            ``attention_mask``.
        sparsity: as :class:`~dynattn.pruning.FTP` takes it.
        router: to train; its weights change.
        rate: the learning rate, by Adam.

    Returns:
        The method, and the way there.

    Raises:
        ValueError: the rate is not positive, the model is in training or of another kind, or no batch came.

    Source: arXiv:2412.11494.
    """
    if not rate > 0:
        raise ValueError(f"learn_router: rate must be positive: got {rate}; try 1e-3")
    if model.training:
        raise ValueError("learn_router: the model must be in eval mode, as dropout blurs the loss: call model.eval()")
    runner, method = find(model).runner, FTP(sparsity, router.train())
    optimizer = torch.optim.Adam(router.parameters(), lr=rate)
    distances: list[float] = []
    shares: list[float] = []
    guides: list[float] = []
    with gradients(model.parameters(), False):
        for step, batch in enumerate(batches):
            distance, way = _forward(runner, batch, method, router)
            guide, share = torch.stack(way.guides).mean(), torch.stack(way.shares).mean()
            loss = distance + way.too_few() + 0.5 ** (step / _HALF_LIFE) * guide
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for noted, value in ((distances, distance), (shares, share), (guides, guide)):
                noted.append(value.item())
    if not distances:
        raise ValueError("learn_router: batches must hold at least one: there is none; a generator is read only once")
    router.eval()
    return LearntRouter(method, distances, shares, guides)


def _forward(
    runner: nn.Module, batch: Mapping[str, Any], method: FTP, router: Router
) -> tuple[Tensor, SoftRouted]:  # fmt: skip
    """The distillation term of a batch, and the way by which the layers went."""
    ways: list[SoftRouted] = []

    def begin(layers: int, alive: Tensor) -> SoftRouted:
        ways.append(SoftRouted(method.of_layers(layers), alive, router))
        return ways[-1]

    with torch.no_grad():
        dense = runner(**batch, use_cache=False).last_hidden_state
    with skipped(runner, begin, watches=True):
        hidden = runner(**batch).last_hidden_state
    wide = arithmetic_dtype(dense.dtype)  # a sum of squares overflows in float16
    tokens = ways[0].alive.unsqueeze(-1)
    found, wanted = hidden.to(wide) * tokens, dense.to(wide) * tokens
    distance = (found - wanted).square().sum() / wanted.square().sum()
    return distance, ways[0]
