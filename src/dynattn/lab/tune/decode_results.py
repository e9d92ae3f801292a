"""What a run of ``dynattn tune --phase decode`` found, as it is written to JSON."""

from __future__ import annotations

from typing import Any, Literal

from dynattn.lab.figures import Record
from dynattn.lab.tune.decoding import TASKS
from dynattn.lab.tune.results import Lost, Raced


class Considered(Record):
    """A way to decode, on the texts of the search.

    Attributes:
        way: its name, see :mod:`dynattn.lab.decode.ways`, with a setting of linear layers or without.
        losses: relative, of the text that goes on and of the hidden numbers.
        keeps: whether the proof would find that both limits are kept, were its items like these.
        speedup: of a step, over Transformers' default; None where it keeps no limit.
        linears: what linear layers leave out, in words; None where they are dense.
    """

    way: str
    losses: list[float]
    keeps: bool
    speedup: float | None
    linears: str | None = None


class Tried(Record):
    """A try of the proof."""

    way: str
    lost: list[Lost]

    @property
    def holds(self) -> bool:
        """Whether both limits were kept."""
        return len(self.lost) == len(TASKS) and all(each.holds for each in self.lost)


class Decoding(Record):
    """A run.

    Attributes:
        model, description, dtype: of what.
        length: tokens of the prompt.
        settings: that were given.
        machine: that it ran on.
        verdict: ``faster``, or ``dense`` where nothing is gained for sure.
        reason: in words.
        way: how to decode; None for Transformers' default.
        linears: what linear layers leave out in steps, as :class:`dynattn.sparsity.LinearSetting` takes it; None where
            they are dense.
        considered: all ways.
        tries: of the proof.
        speed: of a step; None where nothing was proved.
        seconds: that the run took.
        exact: whether the way is dense attention over a cache in place, which needs no proof: the tries are of others.
    """

    model: str
    description: str
    dtype: str
    length: int
    settings: dict[str, Any]
    machine: dict[str, Any]
    verdict: Literal["faster", "dense"]
    reason: str
    way: str | None
    considered: list[Considered]
    tries: list[Tried]
    speed: Raced | None
    seconds: float
    linears: dict[str, Any] | None = None
    exact: bool = False
    version: Literal[1] = 1
