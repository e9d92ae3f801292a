"""Finds the thresholds of methods on some inputs of a model: quantiles over all their tokens, of the dense model.

The model runs over the inputs twice, and a third time where neurons are weighed by what their gate multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynattn.sparsity.activations.base import ActivationPlan
from dynattn.sparsity.activations.calibrated import Calibrated
from dynattn.sparsity.activations.engine import Taken, activation, taking_part
from dynattn.sparsity.activations.quantile import Quantile
from dynattn.sparsity.activations.thresholded import Thresholded
from dynattn.sparsity.sites import Gated, Place, given, norms, unpadded


def calibrate_thresholds(method: ActivationPlan, model: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> Calibrated:
    """Find the thresholds of a method for a model.

        setting = calibrate_thresholds(TEAL(0.5), model, [tokenizer(text, return_tensors="pt") for text in texts])
        with setting.apply(model): ...

    Args:
        method: TEAL, CHESS, or a :class:`~dynattn.sparsity.Sparsity` that holds one of them.
        model: a Transformers model in eval mode.
        inputs: keyword arguments of its forward; what an ``attention_mask`` pads does not count.

    Returns:
        The setting, to apply or to save.

    Raises:
        TypeError: the method or the model is none.
        ValueError: there are no inputs, the method has no thresholds, the model trains, or its layers cannot be named.
    """
    if not isinstance(method, ActivationPlan):
        raise TypeError(f"calibrate_thresholds: method must be one that chooses inputs: got {method!r}; try TEAL(0.5)")
    if not method.needs_thresholds:
        raise ValueError(
            f"calibrate_thresholds: the method must have thresholds: {method.name} has none; apply it as it is"
        )
    taps = _taps(taking_part(model, method))
    if not inputs:
        raise ValueError(
            "calibrate_thresholds: there must be inputs: got none; give some texts of the kind that the model will read"
        )
    if model.training:
        raise ValueError(
            "calibrate_thresholds: the model must be in eval mode, since dropout changes it: call model.eval() first"
        )
    if any(tap.gated is not None for tap in taps):
        _run(model, inputs, taps, _Tap.weigh)
    for tap in taps:
        tap.settle()
    _run(model, inputs, taps, _Tap.first)
    for tap in taps:
        tap.look()
    _run(model, inputs, taps, _Tap.second)
    return Calibrated(method, {place.name: tap.thresholds() for tap in taps for place in tap.places})


class _Tap:
    """What is looked at: the input of linear layers that read the same by one method, or the neurons of an MLP."""

    def __init__(self, method: Thresholded, place: Place) -> None:
        self.method, self.places = method, [place]
        self.gated: Gated | None = place.gated if method.chooses_neurons else None
        self.act = None if self.gated is None else activation(self.gated, place.module)
        self.quantile, self.rank = Quantile(), 0
        self.factors: Tensor | None = None
        self.sums: Tensor | None = None  # of the sizes of what the gate multiplies, over tokens
        self.tokens = 0

    @property
    def module(self) -> nn.Module:
        """Its input is looked at."""
        return self.places[0].module if self.gated is None else self.gated.mlp

    def weigh(self, x: Tensor) -> None:
        """Add up the sizes of what the gate multiplies."""
        if self.gated is not None:
            sizes = self.gated.up.forward(x).double().abs().sum(0)
            self.sums = sizes if self.sums is None else self.sums + sizes
            self.tokens += len(x)

    def settle(self) -> None:
        """Know what sizes are weighed by."""
        means = None if self.sums is None else (self.sums / self.tokens).float()
        self.factors = self.method.factors(norms(self.places[0].module), means)

    def first(self, x: Tensor) -> None:
        """Count, the first time."""
        self.quantile.first(self._sizes(x))

    def look(self) -> None:
        """Know which of all sizes is the threshold: the last that is dropped, or the first that is kept."""
        dropped = self.method.dropped(self.quantile.count)
        self.rank = dropped if self.method.strict else dropped + 1
        if self._inside:
            self.quantile.look_for(self.rank)

    def second(self, x: Tensor) -> None:
        """Count, the second time."""
        if self._inside:
            self.quantile.second(self._sizes(x))

    def thresholds(self) -> tuple[float, ...]:
        """One number, or one for each input."""
        largest = torch.finfo(torch.float32).max
        least = self.quantile.value() if self._inside else (-1.0 if self.rank == 0 else largest)
        if self.factors is None:
            return (least,)
        each = least / self.factors.float()
        return tuple(each.nan_to_num(nan=0.0, posinf=largest).clamp(max=largest).tolist())

    @property
    def _inside(self) -> bool:
        return 1 <= self.rank <= self.quantile.count

    def _sizes(self, x: Tensor) -> Tensor:
        if self.gated is not None and self.act is not None:
            x = self.act(self.gated.gate.forward(x))
        return x.abs() if self.factors is None else x.abs() * self.factors.to(x.device)


def _taps(taken: Sequence[Taken]) -> list[_Tap]:
    found: dict[tuple[Any, str], _Tap] = {}
    for place, chooser in taken:
        if not chooser.needs_thresholds:
            continue
        method = cast(Thresholded, chooser)
        key = (place.read, method.name)
        if key in found:
            found[key].places.append(place)
        else:
            found[key] = _Tap(method, place)
    return list(found.values())


@torch.no_grad()
def _run(
    model: nn.Module, inputs: Sequence[Mapping[str, Any]], taps: Sequence[_Tap], see: Callable[[_Tap, Tensor], None]
) -> None:
    """Show each tap what its module reads, of all inputs."""
    mask: Tensor | None = None

    def hook(tap: _Tap) -> Callable[..., None]:
        return lambda module, args, kwargs: see(tap, unpadded(given(args, kwargs), mask))

    with ExitStack() as undo:
        for tap in taps:
            undo.callback(tap.module.register_forward_pre_hook(hook(tap), with_kwargs=True).remove)
        for each in inputs:
            mask = each.get("attention_mask")
            model(**each)
