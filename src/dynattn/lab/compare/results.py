"""What a comparison found, as it is written to JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

BASELINE = "sdpa"
"""Name of the baseline in every table: Transformers' own use of PyTorch's ``scaled_dot_product_attention``."""

UNFUSED = "eager"
"""Name of Transformers' unfused attention, which writes all scores to memory; shown for contrast."""


class Record(BaseModel):
    """Fields that are not known are refused, so that a renamed one is noticed when an old file is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(Record):
    """A mean and its 95% confidence interval; None where there are too few items for one."""

    mean: float
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Worst(Record):
    """The item that lost most against the baseline."""

    item: str
    difference: float


class Quality(Record):
    """One task with one method.

    Attributes:
        method: short name.
        score: mean over the items.
        difference: to the baseline, paired by item, in the metric's own direction; None for the baseline.
        agreement: mean cosine of the outputs to the baseline's; None where the task has no such outputs.
        worst: where it hurt most; None for the baseline, and where nothing got worse.
        scores: one an item.
    """

    method: str
    score: float
    difference: Interval | None
    agreement: float | None
    worst: Worst | None
    scores: list[float]


class TaskResult(Record):
    """One task with every method; the baseline comes first."""

    name: str
    title: str
    metric: str
    higher_is_better: bool
    data: str
    items: list[str]
    length: int
    seconds: float
    results: list[Quality]

    def of(self, method: str) -> Quality:
        """The result of a method."""
        return next(result for result in self.results if result.method == method)


class Spread(Record):
    """Median and quartiles."""

    median: float
    q1: float
    q3: float


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

    @property
    def batch(self) -> int:
        """Items at once where throughput and memory were measured."""
        return self.throughput.batch if self.throughput else 1
