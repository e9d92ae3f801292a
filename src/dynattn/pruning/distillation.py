"""The loss that trains a model with dropped tokens to do its task, to stay near the dense model, and to drop enough.

    loss = w_task · task + w_outputs · outputs + w_tokens · tokens + w_ratio · ratio

    outputs = KL(dense ‖ pruned) of the logits;  without a head, mean (c − c')² of the class token
    tokens  = Σ_i D_i mean (t_i − t'_i)² / Σ_i D_i       over the tokens that are left at the end
    ratio   = mean over stages s and samples of (ρ^s − mean_i D_i^s)²

Source: arXiv:2106.02034, equations 12 to 16, with its weights; means over features as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional


@final
@dataclass(frozen=True)
class Weights:
    """Factors of the four terms; 0 leaves one out.

    Args:
        task: the factor of the model's own loss, where there are labels.
        outputs: the factor of the distillation of logits, or of the class token.
        tokens: the factor of the distillation of tokens.
        ratio: the factor of the gap between the share kept and its target.
    """

    task: float = 1.0
    outputs: float = 0.5
    tokens: float = 0.5
    ratio: float = 2.0

    def __post_init__(self) -> None:
        values = (self.task, self.outputs, self.tokens, self.ratio)
        if min(values) < 0:
            raise ValueError(f"Weights: they must not be negative: got {values}; 0 leaves a term out")


class Terms(NamedTuple):
    """The four terms, scalars, before they are weighted."""

    task: Tensor
    outputs: Tensor
    tokens: Tensor
    ratio: Tensor

    def total(self, weights: Weights) -> Tensor:
        """The weighted sum."""
        return (
            weights.task * self.task + weights.outputs * self.outputs + weights.tokens * self.tokens
            + weights.ratio * self.ratio
        )  # fmt: skip


def logit_loss(logits: Tensor, dense: Tensor) -> Tensor:
    """``KL(dense ‖ pruned)``, mean over the samples.

    Args:
        logits: (batch, classes), those of the model with dropped tokens.
        dense: (batch, classes), those of the dense model.
    """
    pruned, teacher = logits.log_softmax(-1), dense.log_softmax(-1)
    return functional.kl_div(pruned, teacher, reduction="batchmean", log_target=True)


def feature_loss(features: Tensor, dense: Tensor) -> Tensor:
    """The mean squared difference of (batch, width) features, for models that have no logits."""
    return functional.mse_loss(features, dense)


def token_loss(tokens: Tensor, dense: Tensor, kept: Tensor) -> Tensor:
    """The mean squared difference of the features of kept tokens; 0 where none is kept.

    Args:
        tokens: (batch, tokens, width), of the model with dropped tokens.
        dense: likewise, of the dense model.
        kept: (batch, tokens), 0 or 1. It gets no gradient here: dropping a token must not pay because it was hard.
    """
    weight = kept.detach().to(tokens.dtype)
    return ((tokens - dense).square().mean(-1) * weight).sum() / weight.sum().clamp(min=1)


def ratio_loss(decisions: Sequence[Tensor], keep_ratio: float) -> Tensor:
    """The squared gap between the share kept and ``keep_ratio^s``, averaged over stages and samples.

    Args:
        decisions: the decisions of each stage, (batch, tokens), cumulative.
        keep_ratio: share of a stage's tokens that it shall leave.
    """
    gaps = [(d.mean(1) - keep_ratio**s).square().mean() for s, d in enumerate(decisions, start=1)]
    return torch.stack(gaps).mean()


def terms(
    hidden: Tensor,
    dense: Tensor,
    decisions: Sequence[Tensor],
    keep_ratio: float,
    *,
    logits: tuple[Tensor, Tensor] | None = None,
    task: Tensor | None = None,
) -> Terms:
    """All four terms of the loss of one forward.

    Args:
        hidden: (batch, length, width), the last hidden state of the model with dropped tokens.
        dense: likewise, of the dense model.
        decisions: the decisions of each stage, (batch, tokens): the last tokens of ``length``, without the class token.
        keep_ratio: share of a stage's tokens that it shall leave.
        logits: the logits of the model with dropped tokens, and of the dense one; None for a model without a head.
        task: the model's own loss; None without labels.
    """
    tokens = decisions[-1].shape[1]
    outputs = feature_loss(hidden[:, 0], dense[:, 0]) if logits is None else logit_loss(*logits)
    return Terms(
        task=hidden.new_zeros(()) if task is None else task,
        outputs=outputs,
        tokens=token_loss(hidden[:, -tokens:], dense[:, -tokens:], decisions[-1]),
        ratio=ratio_loss(decisions, keep_ratio),
    )
