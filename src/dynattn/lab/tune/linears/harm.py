"""How much each layer is harmed where linear layers of one kind leave something out, a method and kind a forward.

Every layer reads what it reads in the dense model, with a method in its linear layers of one kind. The harm is the
energy of the error of what it adds to the residual stream x, as for heads (:mod:`dynattn.lab.tune.sensitivity`):

    harm(layer, kind, method) = mean over tokens i of  ‖(layer_method(x) − layer_dense(x))_i‖² / ‖x_i‖²

What follows inside of the layer has its part in it: the softmax behind queries and keys, the activation behind a gate.
A token chooses by itself, so that the beginnings of texts tell as much as the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.pruning.structure.find import find
from dynattn.sparsity.sites import unpadded

Harm = dict[str, dict[str, list[float]]]
"""By method and kind: the harm of each layer."""


class _Call(NamedTuple):
    """What a layer was given and gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def states(self) -> Tensor:
        """The residual stream."""
        return self.args[0] if self.args else self.kwargs["hidden_states"]


@torch.inference_mode()
def look(
    model: nn.Module,
    inputs: Sequence[Mapping[str, Any]],
    contexts: Mapping[tuple[str, str], Callable[[], AbstractContextManager[Any]]],
) -> Harm:
    """The harm of methods in each layer.

    Args:
        model: of Transformers, whose layers can be named; without a cache.
        inputs: keyword arguments of its forward.
        contexts: by method and kind, what has the linear layers of that kind work by the method.
    """
    layers = [layer.module for layer in find(model).layers]
    dense = [_calls(model, layers, each) for each in inputs]
    found: Harm = {}
    for (method, kind), context in contexts.items():
        with context():
            several = [_harm(model, layers, *each) for each in zip(inputs, dense, strict=True)]
        found.setdefault(method, {})[kind] = torch.stack(several).mean(0).tolist()
    return found


def _calls(model: nn.Module, layers: Sequence[nn.Module], inputs: Mapping[str, Any]) -> list[_Call]:
    """The call of each layer in the dense model."""
    calls: dict[nn.Module, _Call] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[layer] = _Call(args, kwargs, _states(output))

    with ExitStack() as undo:
        for layer in layers:
            undo.callback(layer.register_forward_hook(note, with_kwargs=True).remove)
        model(**inputs)
    return [calls[layer] for layer in layers]


def _harm(model: nn.Module, layers: Sequence[nn.Module], inputs: Mapping[str, Any], dense: list[_Call]) -> Tensor:
    """(layers,) float64."""
    mask = inputs.get("attention_mask")
    errors: dict[nn.Module, Tensor] = {}
    with _fed(layers, dense, errors):
        model(**inputs)
    found = []
    for layer, call in zip(layers, dense, strict=True):
        size = unpadded(call.states, mask).double().square().sum(-1)
        error = unpadded(errors[layer], mask).double().square().sum(-1)
        found.append((error / size.clamp(min=torch.finfo(torch.float32).tiny)).mean().cpu())
    return torch.stack(found)


@contextmanager
def _fed(layers: Sequence[nn.Module], dense: Sequence[_Call], errors: dict[nn.Module, Tensor]) -> Iterator[None]:
    """While active, layers are given what they are given in the dense model, and what they err by is noted."""
    of = dict(zip(layers, dense, strict=True))

    def feed(layer: nn.Module, *_: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return of[layer].args, of[layer].kwargs

    def note(layer: nn.Module, _: Any, output: Any) -> None:
        errors[layer] = _states(output) - of[layer].output

    with ExitStack() as undo:
        for layer in layers:
            undo.callback(layer.register_forward_pre_hook(feed, with_kwargs=True).remove)
            undo.callback(layer.register_forward_hook(note).remove)
        yield


def _states(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
