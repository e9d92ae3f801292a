"""Vertical-slash attention: the last queries of a prompt tell which keys and which distances all queries attend to.

    kept(I, J) ⇔ column(J) is among the largest, or diagonal(I - J) is, or J holds a key near I or one of the first

I and J are blocks of queries and keys, and :mod:`~dynattn.methods.last_queries` says what their weights are. Columns
and diagonals are counted.

Source: MInference, arXiv:2407.02490, and as The Sparse Frontier, arXiv:2504.17768, executes it. There, columns are
single keys; here they are blocks as diagonals are, so that kernels skip whatever is dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from torch import Tensor

from dynattn.maths.selection import largest
from dynattn.methods.last_queries import LastQueries
from dynattn.methods.registry import register

_NAME = re.compile(r"verticalslash-(?P<columns>\d+)-(?P<slashes>\d+)-b(?P<block>\d+)(?:-l(?P<last>\d+))?")
_LAST = 256


@final
@register
@dataclass(frozen=True)
class VerticalSlash(LastQueries):
    """Keep the blocks of keys, and the diagonals of blocks, that the last queries of the call attend to most.

    **Every query's choice looks at the last queries.** That is right for a prompt that is there as a whole, and wrong
    for training a causal model and for judging one on every token of a text: the choice has seen what is to be
    predicted.

    Each head chooses by itself. The blocks that hold a key less than ``block`` positions from a query, or one of the
    first 4 keys, are kept besides. Ties go to the lower block of keys and to the lower I - J. A head keeps everything
    where a score of its last queries is NaN or +inf, so that it reaches the output.

    Args:
        columns: ⌈columns / block⌉ blocks of keys are kept for all queries.
        slashes: ⌈slashes / block⌉ diagonals of blocks are kept.
        block: queries and keys in a block, between 1 and 1024.
        last: so many queries at the end of the call choose, or all where there are fewer.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of its range.

    Source: arXiv:2407.02490.
    """

    columns: int
    slashes: int
    block: int = 64
    last: int = _LAST

    def __post_init__(self) -> None:
        self.check(columns=0, slashes=0)
        super().__post_init__()

    @property
    def name(self) -> str:
        """``verticalslash-512-512-b64``, with ``-lLAST`` where it is not 256."""
        last = f"-l{self.last}" if self.last != _LAST else ""
        return f"verticalslash-{self.columns}-{self.slashes}-b{self.block}{last}"

    @classmethod
    def from_name(cls, name: str) -> VerticalSlash | None:
        """The method that ``name`` stands for, or None where it is not a name of this method."""
        match = _NAME.fullmatch(name)
        return cls(**{field: int(part) for field, part in match.groupdict().items() if part}) if match else None

    def best_columns(self, weight: Tensor) -> Tensor:
        """The largest, by count."""
        return largest(weight, -(-self.columns // self.block))

    def best_diagonals(self, weight: Tensor) -> Tensor:
        """The largest, by count."""
        return largest(weight, -(-self.slashes // self.block))
