"""A method for each part of the layers: attention's projections, its output, the MLP."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, final

from dynattn.methods import grammar
from dynattn.sparsity.activations.base import ActivationPlan, ActivationSparsity
from dynattn.sparsity.registry import find
from dynattn.sparsity.sites import PARTS, PROJECTIONS, named

_WORD = "sites"
_LAYERS = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?")
_SKIPPED = re.compile(rf"(?:\d+\.)?(?:{'|'.join(PROJECTIONS)})")


@final
@dataclass(frozen=True)
class Sparsity(ActivationPlan):
    """Methods by part and layer.

        Sparsity(mlp=NMActivations(8, 16, norm=True), qkv=WINA(0.7), layers=range(1, 29), skip=("down", "5.o"))

    By name ``sites(mlp=nmact-8-16-norm_qkv=wina-0.7_layers=1-28_skip=down+5.o)`` (quote it in a shell).

    Args:
        mlp: the method for ``gate``, ``up`` and ``down``, or ``in`` and ``out``; None leaves them dense.
        qkv: likewise for ``q``, ``k`` and ``v``.
        out: likewise for ``o``.
        layers: the layers that take part, in steps of 1; None for all.
        skip: projections that stay dense, in all layers (``down``) or in one (``5.o``).

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: there is no method, a method has nothing to choose in its part, or layers or names are none.
    """

    mlp: ActivationSparsity | None = None
    qkv: ActivationSparsity | None = None
    out: ActivationSparsity | None = None
    layers: range | None = None
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in PARTS:
            method = getattr(self, part)
            if method is not None and not isinstance(method, ActivationSparsity):
                raise TypeError(f"Sparsity: {part} must be a method that chooses inputs: got {method!r}; try WINA(0.5)")
            if method is not None and all(method.at(0, name) is None for name in PARTS[part]):
                raise ValueError(
                    f"Sparsity: {part} must hold what the method chooses: {method.name} has no place there"
                )
        if all(getattr(self, part) is None for part in PARTS):
            raise ValueError(
                "Sparsity: one of mlp, qkv and out must be given: all are None; try Sparsity(mlp=WINA(0.5))"
            )
        if self.layers is not None:
            if not isinstance(self.layers, range):
                raise TypeError(f"Sparsity: layers must be a range: got {self.layers!r}; try range(1, 29)")
            if self.layers.step != 1 or not self.layers or self.layers.start < 0:
                raise ValueError(f"Sparsity: layers must go up in steps of 1 from 0 or more: got {self.layers!r}")
        if not isinstance(self.skip, tuple) or not all(isinstance(name, str) for name in self.skip):
            raise TypeError(f"Sparsity: skip must be a tuple of names: got {self.skip!r}; try ('down',)")
        if wrong := [name for name in self.skip if not _SKIPPED.fullmatch(name)]:
            raise ValueError(
                f"Sparsity: skip must name projections, as 'down' or '5.down': got {wrong[0]!r}; known are "
                f"{', '.join(PROJECTIONS)}"
            )

    @property
    def name(self) -> str:
        """``sites(mlp=…_qkv=…_out=…_layers=…_skip=…)``, less what is not set."""
        parts = [f"{part}={method.name}" for part in PARTS if (method := getattr(self, part)) is not None]
        if self.layers is not None:
            last = f"-{self.layers[-1]}" if len(self.layers) > 1 else ""
            parts.append(f"layers={self.layers[0]}{last}")
        if self.skip:
            parts.append(f"skip={'+'.join(self.skip)}")
        return f"{_WORD}({'_'.join(parts)})"

    @classmethod
    def from_name(cls, name: str) -> Sparsity | None:
        inner = grammar.inside(name, _WORD)
        if inner is None:
            return None
        given: dict[str, Any] = {}
        for entry in grammar.split(inner, "_"):
            field, found, value = entry.partition("=")
            if not found or field in given or field not in {one.name for one in fields(cls)}:
                raise ValueError(
                    f"Sparsity: a part must be mlp=, qkv=, out=, layers= or skip=, each once: got {entry!r} in {name!r}"
                )
            given[field] = _read(field, value, name)
        return cls(**given)

    @property
    def needs_thresholds(self) -> bool:
        """Whether one of the methods must be calibrated."""
        return any(method.needs_thresholds for part in PARTS if (method := getattr(self, part)) is not None)

    def at(self, layer: int, projection: str) -> ActivationSparsity | None:
        """The method of the projection's part, None where the layer is left out or the projection skipped."""
        if self.layers is not None and layer not in self.layers:
            return None
        if projection in self.skip or named(layer, projection) in self.skip:
            return None
        part = next(part for part, names in PARTS.items() if projection in names)
        method = getattr(self, part)
        return None if method is None else method.at(layer, projection)


def _read(field: str, value: str, name: str) -> Any:
    """A field from its part of a name."""
    if field == "skip":
        return tuple(value.split("+"))
    if field == "layers":
        match = _LAYERS.fullmatch(value)
        if match is None:
            raise ValueError(f"Sparsity: layers must be as in 'layers=1-28' or 'layers=5': got {value!r} in {name!r}")
        return range(int(match["first"]), int(match["last"] or match["first"]) + 1)
    method = find(value)
    if method is None:
        raise ValueError(f"Sparsity: {field} must name a method that chooses inputs: got {value!r} in {name!r}")
    return method
