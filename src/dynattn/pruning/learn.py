r"""Learns the thresholds of LTP with soft masks, through which gradients pass. Then the thresholds are used hard.

    M_lj = sigmoid((importance_j - θ_l) / T),    layer output ∘ M_l,    loss = task + λ · mean_l,j M_lj

The mask's mean is the share of tokens that go on, so λ is the price of keeping all of them, in units of the task's
loss. Thresholds are learnt as ``log θ_l``: they stay positive, and one learning rate suits every length. The model's
weights are left alone unless they are given, as ``parameters``.

Source: arXiv:2107.00910, section 3.3. Logarithms are this library's; the paper trains weights and thresholds together,
then the weights alone with hard masks, which is fine-tuning inside ``method.apply(model)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.nn.parameters import gradients
from dynattn.pruning.course import Course, Decision, Seen, Start
from dynattn.pruning.engine import pruned
from dynattn.pruning.layout import find
from dynattn.pruning.ltp import LTP, Watching


class Learnt(NamedTuple):
    """What :func:`learn` returns.

    Attributes:
        method: the thresholds, for hard use.
        losses: the task's loss with the soft mask, for each step.
        kept: the mean of the soft masks, for each step.
    """

    method: LTP
    losses: list[float]
    kept: list[float]


class Soft:
    """Thresholds that can be learnt. A forward of the model with them notes its soft masks.

    Attributes:
        logarithms: (layers - 1,) parameter, log θ_l of all layers but the last one, since no layer follows on that.
        masks: soft masks of the forwards since they were last cleared: (batch, tokens), 1 for leading tokens, and
            which of them are tokens.
    """

    def __init__(self, start: LTP, layers: int, temperature: float, zero_pruned: bool = False) -> None:
        thresholds = start.of_layers(layers)[:-1]
        if any(threshold <= 0 for threshold in thresholds):
            raise ValueError(f"learn: thresholds must start above 0: got {start.thresholds}; try LTP(0.001)")
        self.logarithms = nn.Parameter(torch.tensor([math.log(threshold) for threshold in thresholds]))
        self.temperature = temperature
        self.zero_pruned = zero_pruned
        self.masks: list[tuple[Tensor, Tensor]] = []

    def course(self, start: Start) -> Course:
        """The state for one forward, as :func:`~dynattn.pruning.pruned` takes it."""
        return _Gated(self, start.layers)

    def kept(self) -> Tensor:
        """The mean of the masks noted, over tokens, then over layers and forwards; a scalar."""
        return torch.stack([(mask * alive).sum() / alive.sum() for mask, alive in self.masks]).mean()

    def hard(self) -> LTP:
        """The thresholds as they are now, to 4 digits. That of the last layer decides nothing, and is set to the one
        before."""
        thresholds = [float(f"{threshold:.4g}") for threshold in self.logarithms.detach().exp().tolist()]
        return LTP((*thresholds, thresholds[-1]))


class _Gated(Watching):
    def __init__(self, soft: Soft, layers: int) -> None:
        super().__init__(layers)
        self.soft = soft
        self.product: Tensor | float = 1.0  # the product of the masks so far, which says how much of a token is left

    def after(self, seen: Seen) -> Decision:
        if self.importance is None:  # this is the last layer
            left = self.product
            return Decision(gate=left if self.soft.zero_pruned and isinstance(left, Tensor) else None)
        threshold = self.soft.logarithms[seen.layer].exp()
        mask = torch.sigmoid((self.importance - threshold) / self.soft.temperature).masked_fill(seen.leading, 1.0)
        self.soft.masks.append((mask, seen.alive))
        self.product = self.product * mask
        return Decision(gate=mask)


def learn(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: Iterable[Any],
    *,
    start: LTP,
    temperature: float,
    strength: float,
    rate: float = 0.05,
    zero_pruned: bool = False,
    parameters: Iterable[nn.Parameter] = (),
    parameters_rate: float = 2e-5,
) -> Learnt:
    """Learn a threshold for each layer by the task's own loss.

    Args:
        model: an encoder; in eval mode, so that dropout does not blur the masks, unless its weights are trained too.
        loss: runs the model on a batch and returns the task's loss, a scalar.
        batches: what to learn from, a step each.
        start: thresholds to begin with, above 0.
        temperature: T, of the size of the differences between importances: the paper tries 1e-4 to 2e-3.
        strength: λ.
        rate: learning rate of ``log θ``, by Adam.
        zero_pruned: for models whose outputs are averaged over tokens, as :meth:`~dynattn.pruning.Pruning.apply` takes
            it: the last layer's output is multiplied by the product of all masks.
        parameters: weights to train together with the thresholds; none by default.
        parameters_rate: the learning rate of those weights.

    Returns:
        The learnt method, and the way there.

    Raises:
        TypeError: ``start`` is not LTP.
        ValueError: a number is not positive, the model cannot be pruned or the loss does not run it, or no batch came.

    Source: arXiv:2107.00910.
    """
    if not isinstance(start, LTP):
        raise TypeError(f"learn: start must be LTP, whose thresholds are learnt: got {start!r}; try LTP(0.002)")
    given = {"temperature": temperature, "strength": strength, "rate": rate}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"learn: {name} must be positive: got {value}; see the paper's values in the docs")
    soft = Soft(start, len(find(model).layers), temperature, zero_pruned)
    device = next(model.parameters()).device
    soft.logarithms.data = soft.logarithms.data.to(device)
    trained = list(parameters)
    frozen = [weight for weight in model.parameters() if not any(weight is other for other in trained)]
    groups = [
        {"params": [soft.logarithms], "lr": rate},
        *([{"params": trained, "lr": parameters_rate}] if trained else []),
    ]
    optimizer = torch.optim.Adam(groups)
    losses, kept = [], []
    with gradients(frozen, False), pruned(model, soft.course):
        for batch in batches:
            soft.masks.clear()
            task = loss(batch)
            if not soft.masks:
                raise ValueError("learn: loss must run the model: it made no forward; call model(...) inside of it")
            share = soft.kept()
            optimizer.zero_grad()
            (task + strength * share).backward()
            optimizer.step()
            losses.append(task.item())
            kept.append(share.item())
    if not losses:
        raise ValueError("learn: batches must hold at least one: there is none; a generator can be read only once")
    return Learnt(soft.hard(), losses, kept)
