"""DynamicViT: a small predictor says, at a few layers, which tokens of a vision transformer go on.

    stage s, before layer l_s:   π = Predictor_s(tokens left)
    inference:  the floor(ρ^s · n) tokens with the largest π_keep go on; the others are gone
    training:   D <- D · Gumbel-softmax(π), straight-through; dropped tokens stay, and no other token attends to them

The class token and registers always go on. A dropped token leaves with the state that it had when it was dropped, in
training too. So a masked forward that keeps the tokens of the largest π gives what the gathered forward gives.

Source: arXiv:2106.02034.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from dynattn.methods import share
from dynattn.pruning.base import Pruning
from dynattn.pruning.course import Attended, Course, Decision, Seen, Start, highest
from dynattn.pruning.engine import pruned
from dynattn.pruning.layout import Layout, find
from dynattn.pruning.policy import attend
from dynattn.pruning.predictor import KEEP, Predictors, draw, left_after
from dynattn.pruning.schedule import check_ratio

Choose = Callable[[Tensor, Tensor], Tensor]
"""Makes new decisions from log-probabilities (batch, tokens, 2) and the earlier decisions (batch, tokens)."""


@dataclass
class Drawn:
    """The decisions of a masked forward. Each forward fills it anew.

    Attributes:
        decisions: for each stage (batch, tokens), 0 or 1 with a gradient, cumulative. Class token and registers are not
            among the tokens.
    """

    decisions: list[Tensor] = field(default_factory=list)


@final
@dataclass(frozen=True)
class DynamicViT(Pruning):
    """Drop tokens where trained predictors say so.

    Args:
        predictors: a predictor for each stage, trained for the model.
        keep_ratio: the share of its tokens that a stage leaves; None for the share that the predictors were trained
            for. Another share may be given, since predictors rank the tokens.

    Raises:
        TypeError: the predictors are not ``Predictors``, or the ratio is not a number.
        ValueError: the ratio is not above 0 and at most 1.

    Source: arXiv:2106.02034.
    """

    predictors: Predictors
    keep_ratio: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.predictors, Predictors):
            raise TypeError(
                f"DynamicViT: predictors must be Predictors: got {self.predictors!r}; train some, or read them by "
                "Predictors.load(folder)"
            )
        check_ratio("DynamicViT", "keep_ratio", self.ratio)

    @property
    def ratio(self) -> float:
        """The share of its tokens that a stage leaves."""
        return self.predictors.keep_ratio if self.keep_ratio is None else self.keep_ratio

    @property
    def name(self) -> str:
        """``dynamicvit-RATIO``."""
        return f"dynamicvit-{share.text(self.ratio)}"

    @classmethod
    def from_name(cls, name: str) -> None:
        """None, since a name cannot say which predictors to use."""

    def course(self, start: Start) -> Course:
        """The course of inference, where dropped tokens are gone."""
        _check_layers(self.predictors, start.layers)
        return _Gathered(self.predictors, self.ratio)

    @contextmanager
    def training(self, model: nn.Module, choose: Choose = draw) -> Iterator[Drawn]:
        """While active, the model's forward drops tokens by masking them, so that predictors can be trained.

            with DynamicViT(predictors).training(model) as drawn:
                output = model(pixel_values)
            ratio_loss(drawn.decisions, 0.7)

        Attention is dense from the first stage on, and quadratic in memory. On exit the model is what it was.

        Args:
            model: as :meth:`apply` takes it, with ``attn_implementation`` ``sdpa`` or ``eager``.
            choose: makes decisions from log-probabilities.

        Yields:
            The decisions of the newest forward.

        Raises:
            ValueError: the model is of another kind, or a batch is padded.
        """
        layout, drawn = find(model), Drawn()

        def begin(start: Start) -> Course:
            _check_layers(self.predictors, start.layers)
            _check_training(layout, start, model.training)
            course = _Masked(self.predictors, choose, layout.leading)
            drawn.decisions = course.decisions
            return course

        with pruned(model, begin):
            yield drawn


class _Gathered(Course):
    """Inference: the tokens that a stage does not choose are gone."""

    def __init__(self, predictors: Predictors, keep_ratio: float) -> None:
        self.predictors, self.keep_ratio = predictors, keep_ratio
        self.counts: list[int] = []  # how many tokens each sample has before anything is dropped

    def after(self, seen: Seen) -> Decision:
        candidates = seen.alive & ~seen.leading
        if seen.layer == 0:
            self.counts = candidates.sum(1).tolist()
        if seen.layer + 1 not in self.predictors.layers:
            return Decision()
        stage = self.predictors.layers.index(seen.layer + 1)
        _check_hidden(self.predictors, seen.hidden)
        keep = self.predictors.log_probabilities(stage, seen.hidden, candidates)[..., KEEP]
        counts = [left_after(count, self.keep_ratio, stage) for count in self.counts]
        return Decision(highest(keep, candidates, torch.tensor(counts, device=keep.device)))


class _Masked(Course):
    """Training: every token stays in the sequence, and the decisions say which tokens are attended to."""

    def __init__(self, predictors: Predictors, choose: Choose, leading: int) -> None:
        self.predictors, self.choose, self.leading = predictors, choose, leading
        self.decisions: list[Tensor] = []
        self.states: list[Tensor] = []  # for each stage the tokens when it decided, [batch, tokens, width]

    def attend(self, attended: Attended) -> Tensor:
        if not self.decisions:
            return attended.run()
        gates = nn.functional.pad(self.decisions[-1], (self.leading, 0), value=1.0)  # [batch, length]
        return attend(attended.query, attended.key, attended.value, gates, attended.scale).transpose(1, 2)

    def after(self, seen: Seen) -> Decision:
        if seen.layer + 1 in self.predictors.layers:
            _check_hidden(self.predictors, seen.hidden)
            tokens = seen.hidden[:, self.leading :]
            before = self.decisions[-1] if self.decisions else torch.ones_like(tokens[..., 0])
            probabilities = self.predictors.log_probabilities(len(self.decisions), tokens, before)
            self.decisions.append(self.choose(probabilities, before))
            self.states.append(tokens)
        return Decision()

    def finish(self, full: Tensor) -> Tensor:
        """Put every dropped token back as it was when it was dropped."""
        before = torch.ones_like(self.decisions[0])
        tokens = full[:, self.leading :] * self.decisions[-1].unsqueeze(-1)
        for decision, state in zip(self.decisions, self.states, strict=True):
            tokens = tokens + (before - decision).unsqueeze(-1) * state
            before = decision
        return torch.cat([full[:, : self.leading], tokens], dim=1)


def _check_layers(predictors: Predictors, layers: int) -> None:
    if predictors.layers[-1] >= layers:
        raise ValueError(
            f"DynamicViT: predictors must stand before layers of the model: they stand before {predictors.layers}, and "
            f"it has {layers}; make Predictors with other layers"
        )


def _check_hidden(predictors: Predictors, hidden: Tensor) -> None:
    if predictors.width != hidden.shape[-1]:
        raise ValueError(
            f"DynamicViT: predictors must be of the model's width: they have {predictors.width}, it has "
            f"{hidden.shape[-1]}; make Predictors(model.config.hidden_size)"
        )
    dtype = next(predictors.parameters()).dtype
    if dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise TypeError(
            f"DynamicViT: predictors must be of the model's dtype: they are {dtype}, it computes in {hidden.dtype}; "
            f"convert them with predictors.to({hidden.dtype})"
        )


def _check_training(layout: Layout, start: Start, training: bool) -> None:
    implementation = layout.config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"DynamicViT: a masked forward attends densely, and the model has attn_implementation {implementation!r}; "
            "call model.set_attn_implementation('sdpa') to train, and set the other one again afterwards"
        )
    if training and layout.config.attention_probs_dropout_prob > 0:
        raise ValueError(
            "DynamicViT: a masked forward has no dropout of attention weights, and the model's config asks for "
            f"{layout.config.attention_probs_dropout_prob}; call model.eval(), or set it to 0 and load the model again"
        )
    if not bool(start.alive.all()):
        raise ValueError("DynamicViT: predictors are trained without padding: this batch has some; use equal sizes")
