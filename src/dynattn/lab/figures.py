"""Classes of results that several commands share, as they are written to JSON: means with intervals, scores,
spreads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from dynattn.lab.timing import Spread as Quartiles

BASELINE = "sdpa"
"""Name of the baseline in every table: Transformers' own use of PyTorch's ``scaled_dot_product_attention``."""

UNFUSED = "eager"
"""Name of Transformers' unfused attention, which writes all scores to memory; shown for contrast."""


class Record(BaseModel):
    """The base of everything that is written to JSON. Reading refuses unknown fields, so that a renamed one is
    noticed."""

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
        method: its short name.
        score: the mean over the items.
        difference: the difference to the baseline, paired by item, in the metric's own direction; None for the
            baseline.
        agreement: the mean cosine between the outputs and the baseline's; None where the task has no such outputs.
        worst: the item that lost most; None for the baseline, and where nothing got worse.
        scores: a score for each item.
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
    chance: float | None = None  # the score that guessing gives; older records have none

    def of(self, method: str) -> Quality:
        """The result of a method."""
        return next(result for result in self.results if result.method == method)


class Spread(Record):
    """Median and quartiles."""

    median: float
    q1: float
    q3: float


def spread(of: Quartiles) -> Spread:
    """The spread of a timing, as it is written to JSON."""
    return Spread(median=of.median, q1=of.q1, q3=of.q3)
