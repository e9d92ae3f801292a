"""FlexPrefill's budgets: vertical-slash attention whose heads keep as much as the last queries' attention takes.

    columns kept = max(⌈least / B⌉, 1 + how many of the largest, added up, stay within the share ``mass`` of all)

and likewise for diagonals; :mod:`~dynattn.methods.last_queries` says what their weights are. Heads whose attention is
sharp keep few columns and diagonals, those whose attention is flat keep many.

Source: FlexPrefill, arXiv:2502.20766, as The Sparse Frontier, arXiv:2504.17768, executes it: all heads are
vertical-slash, where the paper chooses for each head between that and a choice of blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.maths.selection import largest
from dynattn.methods import share
from dynattn.methods.last_queries import LastQueries
from dynattn.methods.registry import register

_NAME = re.compile(rf"flexprefill-(?P<mass>{share.NUMBER})-b(?P<block>\d+)(?:-m(?P<least>\d+))?(?:-l(?P<last>\d+))?")
_LAST = _LEAST = 512


@final
@register
@dataclass(frozen=True)
class FlexPrefill(LastQueries):
    """Keep the blocks of keys, and the diagonals of blocks, that hold a share of the last queries' attention.

    **Every query's choice looks at the last queries**, as in :class:`~dynattn.VerticalSlash`: what is said there of
    use, ties and neighbours holds here too.

    Args:
        mass: the share, a float above 0, at most 1.
        block: queries and keys in a block, between 1 and 1024.
        least: at least ⌈least / block⌉ columns and as many diagonals are kept, where there are as many.
        last: so many queries at the end of the call choose, or all where there are fewer.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range.

    Source: arXiv:2502.20766.
    """

    mass: float
    block: int = 64
    least: int = _LEAST
    last: int = _LAST

    def __post_init__(self) -> None:
        share.check("FlexPrefill", self.mass, "mass")
        self.check(least=0)
        super().__post_init__()

    @property
    def name(self) -> str:
        """``flexprefill-0.65-b64``, with ``-mLEAST`` and ``-lLAST`` where they are not 512."""
        least = f"-m{self.least}" if self.least != _LEAST else ""
        last = f"-l{self.last}" if self.last != _LAST else ""
        return f"flexprefill-{share.text(self.mass)}-b{self.block}{least}{last}"

    @classmethod
    def from_name(cls, name: str) -> FlexPrefill | None:
        """The method that ``name`` stands for, or None where it is not a name of this method."""
        match = _NAME.fullmatch(name)
        if not match:
            return None
        sizes = {key: int(match[key]) for key in ("block", "least", "last") if match[key]}
        return cls(float(match["mass"]), **sizes)

    def best_columns(self, weight: Tensor) -> Tensor:
        """The largest, until the mass is reached."""
        added = weight.sort(dim=-1, descending=True, stable=True).values.cumsum(-1)
        within = (added <= self.mass * weight.sum(-1, keepdim=True)).sum(-1)
        return largest(weight, (within + 1).clamp(min=-(-self.least // self.block)))

    def best_diagonals(self, weight: Tensor) -> Tensor:
        """The largest, until the mass is reached."""
        return self.best_columns(weight)
