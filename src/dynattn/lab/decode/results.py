"""The results about decoding, as they are written to JSON."""

from __future__ import annotations

from typing import Any, Literal

from dynattn.lab.figures import Record, Spread


class WaySpeed(Record):
    """How fast one way decodes.

    Attributes:
        way: its name.
        step: the milliseconds that a token takes.
        speedup: the speed-up over dense decoding, from the ratios within each round.
        samples: how many rounds were taken.
        disturbed: rounds in which other processes took the cores; None where the system does not tell.
        cache: the bytes of the cache after the prompt and the steps.
    """

    way: str
    step: Spread
    speedup: Spread
    samples: int
    disturbed: int | None
    cache: int


class DecodeSpeed(Record):
    """Decoding after a prompt of one length.

    Attributes:
        length: how many tokens the prompt has.
        steps: how many tokens are decoded in a sample.
        weights: the bytes of the model, which are read at every step.
        rows: a row for each way, with dense decoding first.
    """

    schema_version: Literal[1] = 1
    model: str
    description: str
    machine: dict[str, Any]
    length: int
    steps: int
    weights: int
    rows: list[WaySpeed]

    def of(self, way: str) -> WaySpeed:
        """The row of a way."""
        return next(row for row in self.rows if row.way == way)


class ItemScores(Record):
    """One context.

    Attributes:
        task: the name of what is asked.
        item: the name of the context.
        nll: the negative log-likelihood of the answer in nats per token, by way.
        hit: whether each token of the answer was the likeliest, by way.
    """

    task: str
    item: str
    nll: dict[str, float]
    hit: dict[str, bool]


class DecodeQuality(Record):
    """Answers decoded after prompts of one length, by every way."""

    schema_version: Literal[1] = 1
    model: str
    description: str
    machine: dict[str, Any]
    length: int
    ways: list[str]
    items: list[ItemScores]
