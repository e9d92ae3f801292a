"""Removes elements for a while, by zeros: the definition, to which the sliced model is held.

heads      their slice of the output projection's input is 0
neurons    likewise, of the MLP's second layer
block      what it adds is 0; a norm behind the sum is passed over, so that the block gives back what it is given
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.pruning.structure.elements import Element, left
from dynattn.pruning.structure.find import find


@contextmanager
def masked(model: nn.Module, elements: Iterable[Element]) -> Iterator[None]:
    """While active, the model works without these elements. Gradients flow through the rest.

    Args:
        model: a Transformers model, see :func:`dynattn.pruning.structure.find.find`.
        elements: what is removed.

    Raises:
        TypeError: it is not a module.
        ValueError: the model is not of a known form, or an element does not fit it.
    """
    removed = frozenset(elements)
    if not removed:  # which can be said of any model, one that was cut already included
        yield
        return
    structure = find(model)
    parts = left(structure, removed)
    with ExitStack() as undo:
        for layer, part in zip(structure.layers, parts, strict=True):
            attention, mlp = layer.attention, layer.mlp
            if not part.attention:
                _skip(attention.output, attention.norm, undo)
            elif not part.heads.all():
                empty(attention.output, ~part.heads.repeat_interleave(attention.head_dim), undo)
            if mlp is None or part.neurons is None:
                continue
            if not part.mlp:
                _skip(mlp.output, mlp.norm, undo)
            elif not part.neurons.all():
                empty(mlp.output, ~part.neurons, undo)
        yield


def _skip(output: nn.Module, norm: nn.Module | None, undo: ExitStack) -> None:
    """Let a block add nothing, and its norm, if it is known, give what it is given."""
    undo.callback(output.register_forward_hook(_nothing).remove)
    if norm is not None:
        undo.callback(norm.register_forward_hook(_given).remove)


def empty(output: nn.Module, gone: Tensor, undo: ExitStack) -> None:
    """Let a linear layer read 0 at those inputs that are gone.

    Args:
        output: the layer.
        gone: (in,) bool.
        undo: gives them back when it is closed.
    """
    undo.callback(output.register_forward_pre_hook(_zeros_at(gone)).remove)


def _nothing(_: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor:
    return torch.zeros_like(out)


def _given(_: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor:
    return args[0]


def _zeros_at(gone: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].masked_fill(gone.to(args[0].device), 0), *args[1:])

    return hook
