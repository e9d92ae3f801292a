"""What a comparison found, as it is written to JSON."""

from __future__ import annotations

from typing import Any, Literal

from dynattn.lab.figures import Record, Spread, TaskResult


class Speed(Record):
    """How fast one method ran.

    Attributes:
        method: short name.
        seconds: of one run.
        speedup: over the baseline, from the ratios within each round.
        samples: rounds.
        disturbed: rounds in which other processes took the cores; None where the system does not tell.
    """

    method: str
    seconds: Spread
    speedup: Spread
    samples: int
    disturbed: int | None


class Timed(Record):
    """One thing timed with every method, interleaved in one run.

    Attributes:
        batch: items at once.
        length: tokens of each.
        calls: attention calls in one run, where attention alone was timed; else None.
        rows: one a method; the baseline comes first.
    """

    batch: int
    length: int
    calls: int | None
    rows: list[Speed]

    def of(self, method: str) -> Speed | None:
        """The row of a method, if it was timed."""
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
    """What a method kept of the dense attention weights.

    Attributes:
        method: short name.
        mass: [layer][head], mean over queries and examples.
        lowest: mean over the 1% of queries, in any layer and head, that keep least.
        density: kept pairs over allowed pairs, measured, mean over layers and heads.
    """

    method: str
    mass: list[list[float]]
    lowest: float
    density: float


class Comparison(Record):
    """All of it.

    Attributes:
        dtype: of the model; records of before have none, and are of float32.
        throughput: of several items at once; None where one item alone fills the machine, and ``latency`` tells it.
        memory: of one forward of ``batch`` items.
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
        """Items at once where throughput and memory were measured."""
        return self.throughput.batch if self.throughput else 1
