"""The results of trainings, as they are written to JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dynattn.lab.figures import BASELINE, Interval, Record, Spread


class Point(Record):
    """A value and the number of steps after which it was taken."""

    step: int
    value: float


class Run(Record):
    """One model, trained or not.

    Attributes:
        seed: the seed of the run; None where nothing was trained.
        scores: a score for each item.
        curve: the mean score on the held-out items as training went on, its end included.
        losses: the training loss of each step.
    """

    seed: int | None
    scores: list[float]
    curve: list[Point]
    losses: list[Point]

    @property
    def score(self) -> float:
        """Mean over the items."""
        return sum(self.scores) / len(self.scores)


class Contrast(Interval):
    """A mean over seeds and items with its 95% interval, and what it was made of.

    Attributes:
        by_seed: for each seed the mean over the items.
        over: what varies in the interval.
        degrees: the degrees of freedom of Student's t; None for a bootstrap.
    """

    by_seed: list[float]
    over: Literal["seeds and items", "items"]
    degrees: float | None


class Arm(Record):
    """One method: without training, put into what dense attention was trained to, or trained itself.

    Attributes:
        method: its short name.
        trained: whether the model was trained.
        score: the mean score over its runs.
        difference: the difference to dense attention, paired by seed and item: to the untrained one without training,
            else to the trained one; None for dense.
        gain: the gain over the same method without training, paired by item; None without training.
        seconds: the seconds of a training step.
        runs: a run for each seed.
        swapped: whether the model was trained with dense attention, of the same seed, and the method put in after.
        recovered: what training with the method gives over the swapped arm, paired by seed and item; None where there
            is no such arm.
    """

    method: str
    trained: bool
    score: Contrast
    difference: Contrast | None
    gain: Contrast | None
    seconds: Spread | None
    runs: list[Run]
    swapped: bool = False  # records that are older than this arm have neither this nor ``recovered``
    recovered: Contrast | None = None


class Study(Record):
    """Every method with every seed.

    Attributes:
        name: the name of the experiment.
        summary: its data.
        metric: what a score is.
        higher_is_better: which way is good.
        items: a name for each.
        identity: all that decides a result besides the job.
        job: the numbers that all runs share.
        methods: the baseline first; those whose training diverged are not among them.
        seeds: the seeds of the runs.
        processes: that shared each step.
        machine: where it ran.
        arms: without training first, then swapped, then trained.
        seconds: the seconds of this call; runs that were finished before cost nothing.
        chance: the score that guessing gives; None where nobody knows it, and in records of before.
        diverged: methods of which a training gave what is not finite, and what it gave.
    """

    schema_version: Literal[1] = 1
    name: str
    summary: str
    metric: str
    higher_is_better: bool
    items: list[str]
    identity: dict[str, Any]
    job: dict[str, Any]
    methods: list[str]
    seeds: list[int]
    processes: int
    machine: dict[str, Any]
    arms: list[Arm]
    seconds: float
    chance: float | None = None
    diverged: dict[str, str] = Field(default_factory=dict)

    def of(self, method: str, trained: bool, swapped: bool = False) -> Arm | None:
        """A method's arm, if there is one."""
        wanted = (method, trained, swapped)
        return next((arm for arm in self.arms if (arm.method, arm.trained, arm.swapped) == wanted), None)

    @property
    def at_chance(self) -> bool:
        """Whether trained dense attention does no better than guessing: then no difference to it says anything."""
        if self.chance is None:
            return False
        score = self.dense.score
        bound = score.low if self.higher_is_better else score.high
        reached = score.mean if bound is None else bound
        return not (reached > self.chance if self.higher_is_better else reached < self.chance)

    @property
    def dense(self) -> Arm:
        """Dense attention, trained."""
        return next(arm for arm in self.arms if arm.method == BASELINE and arm.trained)
