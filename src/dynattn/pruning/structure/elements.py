"""What can be removed of a model: attention and MLP blocks, and below them heads and neurons.

An element's name says what it is: ``attention-3`` and ``mlp-3`` are the blocks of layer 3, ``heads-3-0-3`` its query
heads 0, 1 and 2, and ``neurons-3-0-192`` the first 192 neurons of its MLP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dynattn.pruning.structure.find import Structure

Kind = Literal["attention", "mlp", "heads", "neurons"]
"""The kinds of elements."""

_NAME = re.compile(r"(?P<kind>attention|mlp|heads|neurons)-(?P<layer>\d+)(?:-(?P<start>\d+)-(?P<stop>\d+))?")


@dataclass(frozen=True)
class Element:
    """A part of a model that can be removed.

    Args:
        kind: ``attention`` or ``mlp`` for a whole block, ``heads`` or ``neurons`` for a part of one.
        layer: the number of the layer, from 0.
        start: the first query head or neuron; 0 for a block.
        stop: one past the last query head or neuron; 0 for a block.

    Raises:
        ValueError: an argument is out of its range.
    """

    kind: Kind
    layer: int
    start: int = 0
    stop: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Element: kind must be one of {', '.join(get_args(Kind))}: got {self.kind!r}")
        if self.layer < 0:
            raise ValueError(f"Element: layer must not be negative: got {self.layer}; layers count from 0")
        whole = self.kind in ("attention", "mlp")
        if whole != (self.start == self.stop == 0) or (not whole and not 0 <= self.start < self.stop):
            raise ValueError(
                f"Element: a part must be from start to a later stop, and a block has neither: {self.kind} got "
                f"{self.start} to {self.stop}; try Element('heads', 0, 0, 1) or Element('mlp', 0)"
            )

    @property
    def name(self) -> str:
        """``attention-3``, ``heads-3-0-1``: what :meth:`from_name` reads."""
        return f"{self.kind}-{self.layer}" + (f"-{self.start}-{self.stop}" if self.stop else "")

    @classmethod
    def from_name(cls, name: str) -> Element:
        """The element that ``name`` stands for.

        Raises:
            ValueError: it is no element's name.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"Element: name must be as 'mlp-3' or 'heads-3-0-1': got {name!r}")
        kind: Kind = match["kind"]  # pyright: ignore[reportAssignmentType]  # the expression says so
        return cls(kind, int(match["layer"]), int(match["start"] or 0), int(match["stop"] or 0))


class Left(NamedTuple):
    """What is left of a layer.

    Attributes:
        attention: whether the attention block is left; without heads it still adds the bias of its output.
        mlp: likewise.
        heads: (heads,) bool, the query heads that are left.
        kv_heads: (kv_heads,) bool, the key heads that are left.
        neurons: (neurons,) bool; None for a layer whose MLP cannot be cut.
    """

    attention: bool
    mlp: bool
    heads: Tensor
    kv_heads: Tensor
    neurons: Tensor | None


def left(structure: Structure, elements: Iterable[Element]) -> tuple[Left, ...]:
    """What is left of each layer when elements are removed.

    Args:
        structure: the model's.
        elements: what is removed; they may overlap.

    Returns:
        One for each layer, in order.

    Raises:
        ValueError: an element does not fit the model.
    """
    removed = frozenset(elements)
    heads = [torch.ones(layer.attention.heads, dtype=torch.bool, device="cpu") for layer in structure.layers]
    neurons = [
        None if layer.mlp is None else torch.ones(layer.mlp.neurons, dtype=torch.bool, device="cpu")
        for layer in structure.layers
    ]
    for element in removed:
        _check(structure, element)
        if element.kind == "heads":
            heads[element.layer][element.start : element.stop] = False
        chosen = neurons[element.layer]
        if element.kind == "neurons" and chosen is not None:
            chosen[element.start : element.stop] = False
    return tuple(
        Left(
            Element("attention", number) not in removed,
            Element("mlp", number) not in removed,
            heads[number],
            heads[number].view(layer.attention.kv_heads, -1)[:, 0],  # whole groups are removed, or none of a group
            neurons[number],
        )
        for number, layer in enumerate(structure.layers)
    )


def _check(structure: Structure, element: Element) -> None:
    """Refuse an element that the model does not have."""
    layers = structure.layers
    if element.layer >= len(layers):
        raise ValueError(
            f"remove: an element must be of one of the model's {len(layers)} layers: got {element.name}; take elements "
            "that were found on this model"
        )
    layer = layers[element.layer]
    if element.kind in ("mlp", "neurons") and layer.mlp is None:
        raise ValueError(
            f"remove: {element.name} must be of an MLP of plain linear layers: layer {element.layer} of this model has "
            "none; leave it out"
        )
    most = {"heads": layer.attention.heads, "neurons": layer.mlp.neurons if layer.mlp else 0}.get(element.kind)
    if most is not None and element.stop > most:
        raise ValueError(f"remove: {element.name} must be of the {most} {element.kind} that layer has: it goes beyond")
    group = layer.attention.heads // layer.attention.kv_heads
    if element.kind == "heads" and (element.start % group or element.stop % group):
        raise ValueError(
            f"remove: heads that share a key head must go together: got {element.name}, where {group} query heads "
            f"share one; take multiples of {group}"
        )
