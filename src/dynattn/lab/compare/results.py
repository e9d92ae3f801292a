"""The results of a comparison, as they are written to JSON."""

from __future__ import annotations

from typing import Any, Literal

from dynattn.lab.figures import Record, Spread, TaskResult


class Speed(Record):
    """How fast one method ran.

    Attributes:
        method: its short name.
        seconds: the seconds of one run.
        speedup: the speed-up over the baseline, from the ratios within each round.
        samples: how many rounds were taken.
        disturbed: rounds in which other processes took the cores; None where the system does not tell.
    """

    method: str
    seconds: Spread
    speedup: Spread
    samples: int
    disturbed: int | None


class Timed(Record):
    """The times of one measurement with every method, interleaved in one run.

    Attributes:
        batch: how many items were computed at once.
        length: how many tokens each item has.
        calls: how many attention calls one run makes, where attention alone was timed; else None.
        rows: a row for each method; the baseline comes first.
    """

    batch: int
    length: int
    calls: int | None
    rows: list[Speed]

    def of(self, method: str) -> Speed | None:
        """The row of a method; None where it was not timed."""
        return next((row for row in self.rows if row.method == method), None)


class Share(Record):
    """Seconds inside the attention functions and of the whole forward, medians over the same runs."""

    method: str
    attention: float
    forward: float


class Memory(Record):
    """Peak memory of a forward beyond what was resident before it, in bytes."""

    method: str
    bytes: int


class Kept(Record):
    """How much of the dense attention weight a method kept.

    Attributes:
        method: its short name.
        mass: the kept mass as [layer][head], a mean over queries and examples.
        lowest: the mean over the 1% of queries, in any layer and head, that keep least.
        density: kept pairs over allowed pairs, measured, a mean over layers and heads.
    """

    method: str
    mass: list[list[float]]
    lowest: float
    density: float


class Comparison(Record):
    """All results of a comparison.

    Attributes:
        dtype: the dtype of the model. Older records have none, and are of float32.
        throughput: the times of several items at once; None where one item alone fills the machine, so that ``latency``
            tells the throughput.
        memory: the memory of one forward of ``batch`` items.
    """

    schema_version: Literal[1] = 1
    model: str
    kind: str
    description: str
    machine: dict[str, Any]
    methods: list[str]
    settings: dict[str, Any]
    tasks: list[TaskResult]
    latency: Timed
    throughput: Timed | None
    attention: Timed
    shares: list[Share]
    memory: list[Memory]
    memory_note: str
    kept: list[Kept]
    seconds: float
    dtype: str = "float32"

    @property
    def batch(self) -> int:
        """How many items were computed at once where throughput and memory were measured."""
        return self.throughput.batch if self.throughput else 1
