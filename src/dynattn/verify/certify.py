"""By how much some of a model's hidden states may move before its answer can change.

    margin(ε) = min over the box of radius ε of (logit of the answer - every other logit),    certified ⇔ margin(ε) > 0

Source: interval bound propagation, arXiv:1810.12715, whose last linear layer is taken together with the difference of
logits; the search for the radius of one word, arXiv:2002.06622.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynattn.verify.affine import Affine
from dynattn.verify.box import Box


def bounds(
    model: nn.Module, *inputs: Any, at: nn.Module, radius: float | Tensor, words: Sequence[int] | None = None,
    linear: bool = False, **options: Any,
) -> Any:  # fmt: skip
    """Run a model with a box in place of what one of its modules gives.

    Args:
        model: a model in ``eval()`` mode, in float32 or float64, made of functions that have rules
            (:mod:`dynattn.verify.rules`).
        *inputs: what the model takes.
        at: the module whose output becomes a box, such as the embedding of the tokens: (batch, length, width). Called
            several times, each of its outputs becomes one.
        radius: how far each of its numbers may move, at least 0; a number, or a tensor that broadcasts to the output.
        words: the positions that may move; None for all.
        linear: carry two affine functions of what moves beside the ends of each number
            (:class:`~dynattn.verify.Affine`): never looser, and slower by as many times as numbers move, those of the
            whole batch together.
        **options: what else the model takes.

    Returns:
        What the model returns, with boxes in place of tensors.

    Raises:
        NotImplementedError: the model uses a function without a rule, which the text names.
        RuntimeError: ``at`` was never called.
        ValueError: the model is in training, or a position lies outside of the output.

    Example:
        >>> found = bounds(model, ids, at=model.tokens, radius=0.01, words=[3])
        >>> found["logits"].lower
    """
    if model.training:
        raise ValueError("verify: the model must be in eval mode: got one in training; call model.eval() first")
    with _moved(at, radius, words, Affine if linear else Box) as count:
        found = model(*inputs, **options)
    if not count:
        raise RuntimeError("verify: at must be a module that the model calls: got one that it did not; name another")
    return found


@contextmanager
def _moved(at: nn.Module, radius: float | Tensor, words: Sequence[int] | None, kind: type[Box]) -> Iterator[list[None]]:
    """Boxes in place of the outputs of a module, and one entry for each."""
    calls: list[None] = []

    def widen(module: nn.Module, args: Any, out: Tensor) -> Box:
        calls.append(None)
        if words is None:
            return kind.around(out, radius)
        if any(not -out.shape[1] <= word < out.shape[1] for word in words):
            raise ValueError(f"verify: words must lie in the text of {out.shape[1]} tokens: got {list(words)}")
        moves = torch.zeros_like(out)
        moves[:, list(words)] = 1.0
        return kind.around(out, moves * radius)

    hook = at.register_forward_hook(widen)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def _input_of(module: nn.Module) -> Iterator[list[Any]]:
    """What a module is given."""
    given: list[Any] = []
    hook = module.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    try:
        yield given
    finally:
        hook.remove()


def margins(hidden: Box, head: nn.Linear, labels: Tensor) -> Tensor:
    """The least that the logit of each label may exceed every other one by.

    The differences of logits are one linear map of what comes before them, which loses less than their boxes would.

    Args:
        hidden: (batch, width), what the last linear layer is given.
        head: this layer.
        labels: int64 (batch,).

    Returns:
        (batch, classes), +inf at the label itself. All above 0: the answer cannot change.
    """
    weight = head.weight[labels].unsqueeze(1) - head.weight  # [batch, classes, width]
    least = (weight @ hidden.unsqueeze(-1)).squeeze(-1).lower
    if head.bias is not None:
        least = least + head.bias[labels].unsqueeze(1) - head.bias
    own = F.one_hot(labels, least.shape[-1]).bool()
    return least.masked_fill(own, torch.inf)


def worst_loss(
    model: nn.Module, *inputs: Any, at: nn.Module, head: nn.Linear, labels: Tensor, radius: float | Tensor,
    words: Sequence[int] | None = None, linear: bool = False, **options: Any,
) -> Tensor:  # fmt: skip
    """The mean cross-entropy of the worst logits of the box: the loss of certified training, which has a gradient.

    Its radius grows from 0 in the course of training. Regularisers and schedules are the caller's.

    Args:
        model, *inputs, at, head, labels, radius, words, linear, **options: as :func:`radius` and :func:`bounds` have
            them.

    Returns:
        A scalar.

    Source: arXiv:1810.12715.
    """
    least = _margins_of(model, inputs, options | {"linear": linear}, at, head, labels, words, radius)
    own = F.one_hot(labels, least.shape[-1]).bool()
    return F.cross_entropy((-least).masked_fill(own, 0.0), labels)


def radius(
    model: nn.Module,
    *inputs: Any,
    at: nn.Module,
    head: nn.Linear,
    labels: Tensor,
    words: Sequence[int] | None = None,
    most: float = 1.0,
    steps: int = 10,
    linear: bool = False,
    **options: Any,
) -> Tensor:
    """The largest radius found for which no answer of the box is another one.

    Every radius below it is certified as well, since smaller boxes have smaller bounds; that none is certified says
    nothing about whether there is another answer.

    Args:
        model, *inputs, at, words, linear, **options: as :func:`bounds` takes them.
        head: the model's last linear layer, which gives the logits, and is called once.
        labels: int64 (batch,), the answers that must stay.
        most: the largest radius to look at, above 0.
        steps: halvings of the interval, each one run of the model; the radius is exact to ``most / 2 ** steps``.

    Returns:
        (batch,), 0 where even the radius of the least step is not certified, or the answer is not the label.

    Raises:
        ValueError: ``most`` or ``steps`` is out of range.
    """
    if not most > 0 or steps < 1:
        raise ValueError(f"verify: most must be above 0 and steps at least 1: got {most}, {steps}")

    @torch.no_grad()
    def certified(each: Tensor) -> Tensor:
        given = options | {"linear": linear}
        return (_margins_of(model, inputs, given, at, head, labels, words, each[:, None, None]) > 0).all(-1)

    low = torch.zeros(len(labels), dtype=head.weight.dtype, device=head.weight.device)
    high = torch.full_like(low, most)
    whole = certified(high)
    low = torch.where(whole, high, low)
    for _ in range(steps):
        middle = (low + high) / 2
        holds = certified(middle)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return low


def _margins_of(
    model: nn.Module, inputs: Any, options: Any, at: nn.Module, head: nn.Linear, labels: Tensor,
    words: Sequence[int] | None, radius: float | Tensor,
) -> Tensor:  # fmt: skip
    with _input_of(head) as given:
        bounds(model, *inputs, at=at, radius=radius, words=words, **options)
    if len(given) != 1 or given[0].ndim != 2:
        raise ValueError(
            f"verify: head must be called once, with (batch, width): got {len(given)} calls"
            + (f", the first with {tuple(given[0].shape)}" if given else "")
            + "; name the layer that gives the logits"
        )
    return margins(Box.of(given[0]), head, labels)
