"""What a training may name in the place of dense attention: a method, or pooling with projections of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from dynattn.methods import Method, parse

_NAME = re.compile(r"ponet-([1-9]\d{0,8})")


@final
@dataclass(frozen=True)
class Pooling:
    """:class:`dynattn.nn.PoNet` in the place of attention and its projections. It fits models trained from scratch.

    Args:
        segments: into how many equal parts a sequence is cut at most.

    Raises:
        ValueError: there is no segment.
    """

    segments: int

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise ValueError(
                f"Pooling: segments must be at least 1: got {self.segments}; 1 makes a sequence one segment"
            )

    @property
    def name(self) -> str:
        """``ponet-SEGMENTS``."""
        return f"ponet-{self.segments}"


Mixer = Method | Pooling
"""What mixes the tokens of a layer."""


def mixer(name: str) -> Mixer:
    """What a short name stands for: ``ponet-16``, or the name of a method.

    Raises:
        ValueError: there is neither.
    """
    match = _NAME.fullmatch(name)
    return Pooling(int(match[1])) if match else parse(name)
