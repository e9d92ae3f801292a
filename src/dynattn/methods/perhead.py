"""A method for each head: head h of the queries attends by ``parts[h]``, and each part runs by its own kernel.

    out_h = attention_{parts[h]}(q_h, k_{h // group}, v_{h // group})

Source: heads differ in what they attend to; patterns by head are the idea of MInference, arXiv:2407.02490.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import final

from dynattn.methods import grammar
from dynattn.methods.base import Choice, Method
from dynattn.methods.perlayer import PerLayer
from dynattn.methods.registry import register

_RUN = re.compile(r"(?:(?P<times>[1-9]\d*)\*)?(?P<name>.+)", flags=re.DOTALL)


@final
@register
@dataclass(frozen=True)
class PerHead(Method):
    """Each query head by its own method. Heads with the same method run together.

    By name ``perhead(nm-1-2_2*dense)``: head 0 by ``nm-1-2``, heads 1 and 2 dense (quote it in a shell). With grouped
    queries every query head counts, whichever key head it reads.

    A part sees its own heads alone. So ``Random`` draws by the head's place among the heads of its method; dropout does
    so too, from a seed of its own for each part.

    Args:
        parts: one method for each query head, any but ``PerHead`` and ``PerLayer``.

    Raises:
        TypeError: ``parts`` is not a tuple of methods.
        ValueError: there are none, or one cannot be a head's, or is not registered.
    """

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple) or not all(isinstance(part, Method) for part in self.parts):
            raise TypeError(
                f"PerHead: parts must be a tuple of methods: got {self.parts!r}; try PerHead((NM(1, 2), NM(2, 4)))"
            )
        if not self.parts or any(isinstance(part, (PerHead, PerLayer)) for part in self.parts):
            raise ValueError(
                "PerHead: parts must be one method for each head, none of them PerHead or PerLayer: "
                f"got {self.parts!r}; put PerHead inside of PerLayer"
            )
        object.__setattr__(self, "parts", tuple(grammar.named("PerHead", part) for part in self.parts))
        super().__post_init__()

    @property
    def name(self) -> str:
        """``perhead(a_2*b)``."""
        runs = [(len(list(run)), method.name) for method, run in groupby(self.parts)]
        return f"perhead({'_'.join(name if times == 1 else f'{times}*{name}' for times, name in runs)})"

    @classmethod
    def from_name(cls, name: str) -> PerHead | None:
        """The method that ``name`` stands for, or None where it is no map of heads."""
        inner = grammar.inside(name, "perhead")
        if inner is None:
            return None
        runs = [_RUN.fullmatch(run) for run in grammar.split(inner, "_")]
        return cls(tuple(grammar.part(run["name"]) for run in runs if run for _ in range(int(run["times"] or 1))))

    @property
    def choice(self) -> Choice:
        """None: each head chooses in its own way."""
        return Choice.NONE

    @property
    def keeps_everything(self) -> bool:
        """True where all heads are dense."""
        return all(part.keeps_everything for part in self.parts)

    @property
    def looks_at_positions(self) -> bool:
        """True where a part does."""
        return any(part.looks_at_positions for part in self.parts)
