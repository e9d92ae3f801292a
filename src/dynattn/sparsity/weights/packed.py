"""N:M weights in packed form: in calls of few tokens a linear layer reads what is kept of its weights, and no more.

A layer's own weights stay where they are: packed ones take another share of N / M of them, and a bit or two for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from dynattn.kernels.cpu.linear_calls import MAX_TOKENS
from dynattn.ops.linear import PackedNM, linear_nm_weight, pack_nm
from dynattn.pruning.replaced import ReplacedForward, replace
from dynattn.sparsity.linears import turned
from dynattn.sparsity.sites import given, rows
from dynattn.sparsity.weights.calibration import InputStatistics
from dynattn.sparsity.weights.nm import NMWeights

FEW = MAX_TOKENS
"""Tokens that one call of the kernels takes; longer inputs are cut to as many."""


@torch.no_grad()
def pack(layer: Any, method: NMWeights, statistics: InputStatistics | None = None) -> PackedNM:
    """What a method keeps of a layer's weights.

    Args:
        layer: a plain linear layer.
        method: 1:2, 1:4, 2:4 or 3:4.
        statistics: of the layer's inputs, where the method looks at them.

    Raises:
        ValueError: another pattern, or there are no statistics.
    """
    weight = turned(layer, layer.weight.detach())
    known = None if statistics is None else {"": statistics}
    mask = method.masks({"": weight}, known)[""]
    return pack_nm(weight.masked_fill(~mask, 0), method.n, method.m)


def read_packed(packs: Iterable[tuple[Any, PackedNM]], undo: ExitStack) -> None:
    """Have linear layers read packed weights in place of their own.

    Args:
        packs: layers, with their weights.
        undo: has them read their own again when it is closed.

    Raises:
        ValueError: a layer's forward is replaced already.
    """
    for layer, packed in packs:
        if "forward" in vars(layer):
            raise ValueError(
                "packed: linear layers must have their class's own forward: one is replaced already, by another "
                "context, or by hooks of another library: leave that context first; methods do not nest"
            )
        replace(layer, "forward", ReplacedForward(layer.forward, _reader(layer, packed)), undo)


def _reader(layer: Any, packed: PackedNM) -> Callable[..., Tensor]:
    def run(_: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        x = given(args, kwargs)
        parts = [linear_nm_weight(part, packed, layer.bias) for part in rows(x).split(FEW)]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.view(*x.shape[:-1], out.shape[-1])

    return run
