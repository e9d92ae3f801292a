"""TEAL's greedy allocation: how much each projection of a layer leaves out, so that together they leave out a target.

    s_p = 0 for all;  until Σ s_p |W_p| = (1 - keep) Σ |W_p|:
        raise that s_p by 0.05 · max |W| / |W_p| whose raise leaves the least error of the layer's output

Every raise spares as many weights. The last one is cut so that the target is met. Each layer is looked at by itself, on
what it reads in the dense model.

Source: arXiv:2408.14690, as the code of WINA, arXiv:2505.19427, follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.pruning.structure.find import find
from dynattn.sparsity.activations.calibrated import Calibrated
from dynattn.sparsity.activations.teal import TEAL
from dynattn.sparsity.sites import Place, given, places

_STEP = 0.05


@torch.no_grad()
def allocate(method: TEAL, model: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> Calibrated:
    """Calibrate TEAL with a share of its own for each projection of a layer.

    This runs each layer several hundred times over the inputs: give few, without padding.

    Args:
        method: its ``keep_ratio`` is the share of each layer's weights that are read.
        model: a Transformers model in eval mode.
        inputs: keyword arguments of its forward; decoders need ``use_cache=False``.

    Returns:
        The setting, to apply or to save.

    Raises:
        TypeError: the method is not TEAL.
        ValueError: there are no inputs, the model trains, or its layers cannot be named.
    """
    if not isinstance(method, TEAL):
        raise TypeError(f"allocate: method must be a TEAL: got {method!r}; try TEAL(0.5)")
    if not inputs or model.training:
        raise ValueError("allocate: there must be inputs, and the model must be in eval mode: call model.eval() first")
    of_layers: dict[int, list[Place]] = {}
    for place in places(model):
        of_layers.setdefault(place.layer, []).append(place)
    found: dict[str, tuple[float, ...]] = {}
    for number, layer in enumerate(find(model).layers):
        block = _Block(model, layer.module, of_layers[number], inputs)
        found |= {place.name: (least,) for place, least in block.fill(1 - method.keep_ratio)}
    return Calibrated(method, found)


class _Block:
    """A layer with what it reads and writes in the dense model, and what each of its projections leaves out."""

    def __init__(
        self, model: nn.Module, layer: nn.Module, its: Sequence[Place], inputs: Sequence[Mapping[str, Any]]
    ) -> None:
        self.layer, self.places = layer, its
        self.calls = _calls(model, layer, inputs)
        seen: list[list[Tensor]] = [[] for _ in its]
        with ExitStack() as undo:
            for place, into in zip(its, seen, strict=True):
                undo.callback(_before(place, lambda x, into=into: into.append(x.abs().flatten())))
            self.dense = self._run()
        self.sizes = [torch.cat(parts).sort().values for parts in seen]
        self.weights = [place.module.weight.numel() for place in its]

    def fill(self, target: float) -> list[tuple[Place, float]]:
        """Raise shares until as many weights are spared as asked for; the thresholds of all projections."""
        shares, wanted = [0.0] * len(self.places), target * sum(self.weights)
        while (left := wanted - sum(map(float.__mul__, shares, map(float, self.weights)))) > 1e-9 * wanted:
            spared = min(_STEP * max(self.weights), left)
            tried = []
            for i, weight in enumerate(self.weights):
                if shares[i] < 1:
                    raised = min(1.0, shares[i] + spared / weight)
                    tried.append((self._error([*shares[:i], raised, *shares[i + 1 :]]), i, raised))
            _, best, raised = min(tried)
            shares[best] = raised
        return list(zip(self.places, self._limits(shares), strict=True))

    def _limits(self, shares: Sequence[float]) -> list[float]:
        """The thresholds that drop these shares of the entries."""
        dropped = [round(share * len(sizes)) for share, sizes in zip(shares, self.sizes, strict=True)]
        return [float(sizes[n - 1]) if n else -1.0 for n, sizes in zip(dropped, self.sizes, strict=True)]

    def _error(self, shares: Sequence[float]) -> float:
        with ExitStack() as undo:
            for place, least in zip(self.places, self._limits(shares), strict=True):
                undo.callback(_before(place, lambda x, least=least: x.masked_fill(x.abs() <= least, 0)))
            found = self._run()
        return sum(float((own - whole).double().square().sum()) for own, whole in zip(found, self.dense, strict=True))

    def _run(self) -> list[Tensor]:
        outputs = [self.layer(*args, **kwargs) for args, kwargs in self.calls]
        return [output[0] if isinstance(output, tuple) else output for output in outputs]


def _before(place: Place, change: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
    """Look at what a linear layer reads, or give it something else; what takes that back is returned."""

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        x = change(given(args, kwargs))
        return None if x is None else ((x,), {})

    return place.module.register_forward_pre_hook(hook, with_kwargs=True).remove


def _calls(
    model: nn.Module, layer: nn.Module, inputs: Sequence[Mapping[str, Any]]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of a layer in the dense model; the model goes no further than that."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("past_key_values") is not None:
            raise ValueError("allocate: inputs must come without a cache: a layer was given one; add use_cache=False")
        calls.append((args, kwargs))
        raise _ReachedError

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        for each in inputs:
            with suppress(_ReachedError):
                model(**each)
    finally:
        handle.remove()
    return calls


class _ReachedError(Exception):
    """The layer was reached."""
