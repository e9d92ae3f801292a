"""What a model is judged by: the items of a task, their scores, and what a loss of the score is.

The search and each try of the proof have exams of their own, of texts or seeds that no other has.

A task of the user's own is a function ``make(pretrained, part)`` that gives a :class:`dynattn.lab.tasks.Task`. ``part``
is 0 for the search, 1 and more for the tries of the proof, and each must give other items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynattn.lab.models import Pretrained
from dynattn.lab.scoring import evaluate
from dynattn.lab.statistics import at_chance, cosines
from dynattn.lab.tasks import Outcome, Prepared, Task
from dynattn.lab.tasks.base import Inputs


@dataclass(frozen=True)
class Exam:
    """A task with its items.

    Attributes:
        task: how to score.
        data: the items.
        second: whether it is the unlike task, which a good score in the first one must not hide.
    """

    task: Task
    data: Prepared
    second: bool = False

    @property
    def items(self) -> int:
        """How many there are."""
        return len(self.data.labels)

    @property
    def one_by_one(self) -> bool:
        """Whether an item's score does not depend on the others, so that a look may take some of them alone."""
        return isinstance(self.data.payload, list) and len(self.data.payload) == self.items

    @property
    def in_nats(self) -> bool:
        """Whether scores are negative log-likelihoods."""
        return "nats" in self.task.metric

    @property
    def by_agreement(self) -> bool:
        """Whether the score is the agreement with the dense model, which has no score of its own."""
        return "cosine to dense" in self.task.metric

    def inputs(self, index: int) -> Inputs:
        """The forward that an item asks for first; indices go around."""
        payload = self.data.payload
        if self.one_by_one and self.in_nats and self.task.kinds == ("decoder",):
            each = payload[index % len(payload)]
            return {"input_ids": each[0] if isinstance(each, tuple) else each, "use_cache": False, "logits_to_keep": 1}
        return self.data.examples[index % len(self.data.examples)]

    def portion(self, start: int, stop: int) -> Exam:
        """Some of the items; all of them where one cannot be scored without the others."""
        if not self.one_by_one:
            return self
        data = replace(
            self.data, labels=self.data.labels[start:stop], payload=self.data.payload[start:stop],
            steps=len(self.data.payload[start:stop]),
        )  # fmt: skip
        return replace(self, data=data)

    def outcome(self, pretrained: Pretrained, implementation: str, advance: Callable[[], None]) -> Outcome:
        """What the model makes of the items with an attention."""
        return evaluate(self.task, self.data, pretrained, implementation, advance)

    def scores(self, own: Outcome, dense: Outcome) -> np.ndarray:
        """(items,): of a method, where the dense model's outcome may be needed to compare with.

        Raises:
            ValueError: a score is not finite.
        """
        found = own.scores if own.scores is not None else cosines(own, dense)
        if found is None or not np.isfinite(found).all():
            raise ValueError(
                f"tune: scores must be finite: {self.task.name} gives {found}; the model's weights or its inputs are "
                "not finite"
            )
        return np.asarray(found, np.float64)

    def losses(self, own: np.ndarray, dense: np.ndarray) -> np.ndarray:
        """(items,): what each item lost, in units in which :meth:`limit` is a limit of the mean; positive is worse."""
        if self.in_nats:
            return own - dense
        return dense - own if self.task.higher_is_better else own - dense

    def limit(self, max_loss: float, dense: np.ndarray) -> float:
        """The mean of :meth:`losses` at which a relative loss is reached."""
        return math.log1p(max_loss) if self.in_nats else max_loss * float(np.mean(np.abs(dense)))

    def relative(self, mean: float, dense: np.ndarray) -> float:
        """The relative loss that a mean of :meth:`losses` is."""
        return math.expm1(mean) if self.in_nats else mean / float(np.mean(np.abs(dense)))

    def says_nothing(self, dense: np.ndarray) -> bool:
        """Whether the dense model itself only guesses."""
        return at_chance(tuple(map(float, dense)), self.data.chance, self.task.higher_is_better)


def baseline(exam: Exam, dense: Outcome) -> np.ndarray:
    """(items,): the dense model's scores; 1 for each where the score is the agreement with it."""
    return np.ones(exam.items) if exam.by_agreement or dense.scores is None else exam.scores(dense, dense)


def prepared(task: Task, pretrained: Pretrained, second: bool = False) -> Exam:
    """An exam of a task."""
    from dynattn.lab.scoring import prepare

    return Exam(task, prepare(task, pretrained), second)


def of_payload(task: Task, labels: Sequence[str], payload: list[Any], length: int, chance: float | None) -> Exam:
    """An exam of items that are prepared already, one entry of the payload each."""
    data = Prepared(
        labels=tuple(labels), steps=len(payload), examples=(), length=length, payload=payload, chance=chance,
        summary=f"{len(payload)} pieces of text, {length} tokens each",
    )  # fmt: skip
    return Exam(task, data)
