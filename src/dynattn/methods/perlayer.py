"""A method for each layer of a model: ``method.at(layer)`` is what one attention call computes.

Source: hard attention in chosen layers is AxFormer's, arXiv:2010.03688.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from dynattn.methods import grammar
from dynattn.methods.base import Choice, Method
from dynattn.methods.registry import register

_RANGE = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))?=(?P<name>.+)", flags=re.DOTALL)


@final
@register
@dataclass(frozen=True)
class PerLayer(Method):
    """A method for some layers, and another one for the rest of them.

        PerLayer({range(0, 3): NM(1, 1)}, default=NM(1, 2))         # layers 0, 1 and 2 dense

    By name ``perlayer(nm-1-2_0-2=dense)``, the default first (quote it in a shell). The integration with Transformers
    resolves it; :func:`dynattn.attention`, which does not know its layer, refuses it: pass ``method.at(layer)``.

    Args:
        layers: methods by ranges of layers, a dict or pairs; ranges in steps of 1 that do not overlap.
        default: the method of the other layers.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: ranges overlap, or a method cannot be a layer's, or is not registered.
    """

    layers: Mapping[range, Method] | tuple[tuple[range, Method], ...]
    default: Method

    def __post_init__(self) -> None:
        pairs = tuple(self.layers.items() if isinstance(self.layers, Mapping) else self.layers)
        if not all(isinstance(where, range) and isinstance(method, Method) for where, method in pairs):
            raise TypeError(f"PerLayer: layers must be methods by ranges: got {pairs!r}; try {{range(0, 3): NM(1, 1)}}")
        if not isinstance(self.default, Method):
            raise TypeError(f"PerLayer: default must be a method: got {self.default!r}; try NM(1, 2)")
        pairs = tuple(sorted(pairs, key=lambda pair: pair[0].start))
        edges = [0, *(edge for where, _ in pairs for edge in (where.start, where.stop))]
        if edges != sorted(edges) or any(where.step != 1 or not where for where, _ in pairs):
            raise ValueError(
                "PerLayer: ranges must go up in steps of 1 from 0 or more, hold a layer and not overlap: got "
                f"{[where for where, _ in pairs]}"
            )
        if any(isinstance(method, PerLayer) for method in (self.default, *(method for _, method in pairs))):
            raise ValueError("PerLayer: a layer's method must not be PerLayer; give its ranges here")
        named = tuple((where, grammar.named("PerLayer", method)) for where, method in pairs)
        object.__setattr__(self, "layers", named)
        object.__setattr__(self, "default", grammar.named("PerLayer", self.default))
        super().__post_init__()

    @property
    def name(self) -> str:
        """``perlayer(default_0-2=a_5=b)``."""
        parts = [self.default.name]
        for where, method in self.ranges:
            last = f"-{where[-1]}" if len(where) > 1 else ""
            parts.append(f"{where[0]}{last}={method.name}")
        return f"perlayer({'_'.join(parts)})"

    @classmethod
    def from_name(cls, name: str) -> PerLayer | None:
        """The method that ``name`` stands for, or None where it is no map of layers."""
        inner = grammar.inside(name, "perlayer")
        if inner is None:
            return None
        default, *others = grammar.split(inner, "_")
        pairs = []
        for other in others:
            match = _RANGE.fullmatch(other)
            if match is None:
                raise ValueError(
                    f"parse: layers must be given as in '0-2=dense' or '5=nm-2-4': got {other!r} in {name!r}"
                )
            first, last = int(match["first"]), int(match["last"] or match["first"])
            pairs.append((range(first, last + 1), grammar.part(match["name"])))
        return cls(tuple(pairs), grammar.part(default))

    @property
    def ranges(self) -> tuple[tuple[range, Method], ...]:
        """The ranges in order, each with its method."""
        return tuple(self.layers)  # pyright: ignore[reportReturnType]  # made so above

    def at(self, layer: int) -> Method:
        """The method of a layer, counted from 0."""
        return next((method for where, method in self.ranges if layer in where), self.default)

    @property
    def choice(self) -> Choice:
        """None: each layer chooses in its own way."""
        return Choice.NONE

    @property
    def keeps_everything(self) -> bool:
        """True where all layers are dense."""
        return all(method.keeps_everything for method in self._methods)

    @property
    def looks_at_positions(self) -> bool:
        """True where a layer's method does."""
        return any(method.looks_at_positions for method in self._methods)

    @property
    def _methods(self) -> tuple[Method, ...]:
        return self.default, *(method for _, method in self.ranges)
