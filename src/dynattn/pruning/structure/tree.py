"""The tree of what can be removed: blocks of layers, and below each block its heads or its neurons.

Source of the order: AxFormer, arXiv:2010.03688: coarse first, and inside a level the later layers first.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from dynattn.pruning.structure.elements import Element, Kind
from dynattn.pruning.structure.find import find

PARTS = 8
"""The neurons of an MLP are cut into so many groups."""


def blocks(model: nn.Module, first: Literal["attention", "mlp"] = "attention") -> tuple[Element, ...]:
    """The blocks of a model, in the order in which they are tried.

    Args:
        model: a Transformers model, see :func:`dynattn.pruning.structure.find.find`.
        first: the kind that is tried first: ``attention`` where speed is wanted, ``mlp`` where size is.

    Returns:
        All blocks of one kind, the later layers first, then those of the other.

    Raises:
        TypeError: it is not a module.
        ValueError: the model is not of a known form, or ``first`` is neither kind.
    """
    if first not in ("attention", "mlp"):
        raise ValueError(f"blocks: first must be attention or mlp: got {first!r}; attention for speed, mlp for size")
    layers = find(model).layers
    order: tuple[Kind, Kind] = ("attention", "mlp") if first == "attention" else ("mlp", "attention")
    return tuple(
        Element(kind, number)
        for kind in order
        for number in reversed(range(len(layers)))
        if kind == "attention" or layers[number].mlp is not None
    )


def parts(model: nn.Module, block: Element, groups: int = PARTS) -> tuple[Element, ...]:
    """What a block is made of, each of which can be removed alone.

    Args:
        model: the model that it is a block of.
        block: an attention or MLP block; a part has no parts.
        groups: into how many groups of equal size at most, up to rounding, the neurons of an MLP are cut.

    Returns:
        Single heads, or groups of heads where those share a key head; or groups of neurons.

    Raises:
        TypeError: it is not a module.
        ValueError: the model is not of a known form, or has no such block; there are no groups.
    """
    layers = find(model).layers
    if groups < 1 or block.layer >= len(layers):
        raise ValueError(
            f"parts: groups must be at least 1, and the block one of {len(layers)} layers: got {groups} and "
            f"{block.name}; take a block of blocks(model)"
        )
    layer = layers[block.layer]
    if block.kind == "attention":
        share = layer.attention.heads // layer.attention.kv_heads
        return tuple(
            Element("heads", block.layer, start, start + share) for start in range(0, layer.attention.heads, share)
        )
    if block.kind == "mlp" and layer.mlp is not None:
        wide = -(-layer.mlp.neurons // groups)
        return tuple(
            Element("neurons", block.layer, start, min(start + wide, layer.mlp.neurons))
            for start in range(0, layer.mlp.neurons, wide)
        )
    return ()
