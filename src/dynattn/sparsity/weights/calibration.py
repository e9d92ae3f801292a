"""What the inputs of linear layers are like, over some texts: the statistics by which weights are scored.

    mean_j = E[x_j]      variance_j = E[(x_j - mean_j)²]      norm_j = ‖x_j‖₂ over all tokens seen

One pass over the texts; what is remembered of a layer are two numbers for each of its inputs, whatever the number of
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.maths.scores import arithmetic_dtype
from dynattn.sparsity.linears import linears
from dynattn.sparsity.sites import given, unpadded


@dataclass(frozen=True)
class InputStatistics:
    """The inputs of a linear layer.

    Attributes:
        count: how many tokens were seen.
        mean: (in,) float64, on the CPU, as the others are.
        variance: (in,), by the number of tokens itself and not by one less.
    """

    count: int
    mean: Tensor
    variance: Tensor

    @property
    def norm(self) -> Tensor:
        """(in,) ``‖x_j‖₂``: the root of the sum of squares over all tokens."""
        return (self.count * (self.variance + self.mean.square())).sqrt()

    def and_of(self, rows: Tensor) -> InputStatistics:
        """With more tokens.

        Args:
            rows: (tokens, in).
        """
        if len(rows) == 0:
            return self
        rows = rows.detach().to(arithmetic_dtype(rows.dtype))
        mean = rows.mean(0)
        variance = (rows - mean).square().mean(0).to("cpu", torch.float64)
        mean, share = mean.to("cpu", torch.float64), len(rows) / (self.count + len(rows))
        moved = mean - self.mean
        return InputStatistics(  # the parallel form of Chan, Golub and LeVeque, which does not cancel
            self.count + len(rows),
            self.mean + share * moved,
            (1 - share) * self.variance + share * variance + share * (1 - share) * moved.square(),
        )


def calibrate(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> dict[str, InputStatistics]:
    """Run a model over texts, and look at what its linear layers read.

    Args:
        model: in eval mode.
        batches: keyword arguments of the model, a forward each. Tokens that an ``attention_mask`` (batch, tokens) says
            are padding do not count.

    Returns:
        The statistics of each layer that takes part, by its name; layers that no batch reached are left out.

    Raises:
        TypeError: the model is not a module.
        ValueError: it has no linear layers, is in training, or there is no batch.
    """
    layers = linears(model)
    if model.training:
        raise ValueError("calibrate: the model must be in eval mode, as dropout changes inputs: call model.eval()")
    found: dict[str, InputStatistics] = {}
    text: Tensor | None = None

    def looking(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            inputs = given(args, kwargs)
            nothing = torch.zeros(inputs.shape[-1], dtype=torch.float64, device="cpu")
            found[name] = found.get(name, InputStatistics(0, nothing, nothing)).and_of(unpadded(inputs, text))

        return look

    seen = 0
    with ExitStack() as undo, torch.no_grad():
        for name, layer in layers.items():
            undo.callback(layer.register_forward_pre_hook(looking(name), with_kwargs=True).remove)
        for batch in batches:
            text = batch.get("attention_mask")
            model(**batch)
            seen += 1
    if not seen:
        raise ValueError("calibrate: batches must hold at least one: there is none; a generator is read only once")
    return found


def required(statistics: Mapping[str, InputStatistics] | None, name: str, owner: str) -> InputStatistics:
    """The statistics of a layer.

    Args:
        statistics: as :func:`calibrate` gives them.
        name: of the layer.
        owner: who needs them, for the error.

    Raises:
        ValueError: there are none.
    """
    if statistics is None or name not in statistics:
        lacks = "none were given" if statistics is None else f"those given lack {name!r}"
        raise ValueError(
            f"{owner}: statistics must tell of the inputs of every layer: {lacks}; pass "
            "statistics=dynattn.sparsity.calibrate(model, batches)"
        )
    return statistics[name]
