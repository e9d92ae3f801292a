"""What a run found, as it is written to JSON."""

from __future__ import annotations

from typing import Any, Literal

from dynattn.lab.figures import Record, Spread, spread
from dynattn.lab.timing import Timing

Verdict = Literal["faster", "dense"]


class Time(Record):
    """Where a forward of the dense model spends its time.

    Attributes:
        forward: seconds.
        modules: seconds inside attention, by the module's name.
        length: tokens.
        bound: how many times as fast the model would be with attention that takes no time (Amdahl).
    """

    forward: float
    modules: dict[str, float]
    length: int
    bound: float

    @property
    def share(self) -> float:
        """The share of attention."""
        return sum(self.modules.values()) / self.forward


class Lost(Record):
    """What an assignment lost in one exam, on data of the search or of the proof.

    Attributes:
        task: its name.
        metric: what a score is.
        data: what the items are.
        items: how many were looked at.
        dense: mean score of the dense model.
        tuned: mean score with the assignment.
        loss: relative: of a likelihood by how much the perplexity grew, else the share of the score that went.
        bound: the loss is below this with ``level`` confidence; None where nothing was proved.
        limit: what the loss had to stay below.
        level: the level of the bound.
        looks: how often the proof looked at its data.
        worst: nats, or score, that no item is taken to lose more than, on which the bound is conditional; None where it
            is conditional on nothing.
        proved: whether the loss is at most the limit, with that confidence.
        silent: whether the dense model itself only guesses, so that no loss can be told.
    """

    task: str
    metric: str
    data: str
    items: int
    dense: float
    tuned: float
    loss: float
    bound: float | None
    limit: float
    level: float
    looks: int
    worst: float | None
    proved: bool
    silent: bool

    @property
    def holds(self) -> bool:
        """Whether the limit was kept for sure, or there is nothing that could be lost."""
        return self.silent or self.proved


class Considered(Record):
    """A point that was considered.

    Attributes:
        name: a name for people: ``tuned``, or a method for all layers.
        harm: predicted.
        speedup: the speed-up of the whole model, predicted from the kernels' times.
        losses: relative, of each exam of the search, measured; empty where they were not.
    """

    name: str
    harm: float
    speedup: float
    losses: list[float]


class WholeModel(Record):
    """An assignment together with a method of the whole model.

    Attributes:
        pruning: the name of the method where it shortens the sequence.
        linears: the name of the plan where linear layers leave inputs out; one of the two is None.
        harm: predicted, of the assignment alone.
        losses: relative, of each exam of the search, measured.
        keeps: whether the limits are kept, by what the search saw.
        speedup: of the whole model, measured; None where that was not worth it.
    """

    pruning: str | None
    linears: str | None
    harm: float
    losses: list[float]
    keeps: bool
    speedup: float | None


class Gain(Record):
    """What would be gained at another limit, by the model of harm and loss."""

    max_loss: float
    speedup: float


class Try(Record):
    """One try of the proof."""

    heads: dict[str, list[str]]
    pruning: str | None
    lost: list[Lost]
    linears: str | None = None

    @property
    def holds(self) -> bool:
        """Whether all exams kept their limits."""
        return bool(self.lost) and all(each.holds for each in self.lost)


class Raced(Record):
    """The whole model against itself with SDPA, interleaved."""

    dense: Spread
    tuned: Spread
    speedup: Spread
    rounds: int
    disturbed: int | None

    @classmethod
    def of(cls, dense: Timing, tuned: Timing) -> Raced:
        """What two functions took that were timed in alternation."""
        return cls(
            dense=spread(dense.seconds), tuned=spread(tuned.seconds), speedup=spread(tuned.speedup(dense)),
            rounds=len(tuned.samples), disturbed=tuned.disturbed if tuned.waited else None,
        )  # fmt: skip


class Rival(Record):
    """The best single method for all heads, on the items on which the tuned assignment was proved.

    Attributes:
        method: its name.
        speedup: the speed-up of the whole model, measured in a short race.
        loss: relative.
        tuned: the loss of the tuned assignment, on the same items.
        bound: the loss is below this, by the test that the tuned assignment passed; None where nothing can be said.
        limit: what the loss had to stay below.
        proved: whether it passes that test, too.
    """

    method: str
    speedup: float
    loss: float
    tuned: float
    bound: float | None
    limit: float
    proved: bool


class Tuning(Record):
    """A whole run.

    Attributes:
        model, kind, description, dtype, phase: of what.
        settings: that were given.
        machine: that it ran on.
        verdict: ``faster``, or ``dense`` where nothing is gained for sure.
        reason: why, in words.
        time: where the time went.
        candidates: seconds of a call by shape and method.
        heads: by module, the method of each head: the one that is written, or dense.
        pruning: the name of the method that shortens the sequence besides; None for none.
        considered: points, for the frontier.
        whole_model: what was looked at with methods that shorten the sequence, or have linear layers leave inputs out.
        gains: at other limits.
        tries: the tries of the proof.
        rival: one method for all heads; None where there was no time to look, or nothing was proved.
        speed: the speed of what is written; None where nothing is.
        seconds: that the run took.
        linears: the name of the plan by which linear layers leave inputs out; None for none.
        exact: whether what is written is dense attention of this project, which needs no proof: the tries are of
            what was not proved.
        version: the version of the record.
    """

    model: str
    kind: str
    description: str
    dtype: str
    phase: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    verdict: Verdict
    reason: str
    time: Time
    candidates: list[dict[str, float]]
    heads: dict[str, list[str]]
    pruning: str | None
    considered: list[Considered]
    whole_model: list[WholeModel]
    gains: list[Gain]
    tries: list[Try]
    rival: Rival | None
    speed: Raced | None
    seconds: float
    linears: str | None = None
    exact: bool = False
    version: Literal[1] = 1
