"""What a model is judged by: the items of a task, their scores, and what a loss of the score is.

The search and each try of the proof have exams of their own, of texts or seeds that no other has.

Tasks of the user's own are in :mod:`dynattn.lab.tune.own`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dynattn.lab.models import Pretrained
from dynattn.lab.proof import Proof, Verdict
from dynattn.lab.scoring import evaluate, prepare
from dynattn.lab.statistics import at_chance, cosines
from dynattn.lab.tasks import Outcome, Prepared, Task
from dynattn.lab.tasks.base import Inputs

_MARGINS = 4.0  # times what is allowed in the mean, an item is taken to lose at the most
_MARGINS_OF_NUMBERS = 3.0  # the same, of the mean of the numbers hidden in a text
_MARGINS_OF_TOKENS = 2.0  # the same, of the mean of all tokens of a text, which differs less from that of others
_SEEN = 3.0  # times what the worst item of the search lost, likewise
_MOST_NATS = 700.0  # the exponential of more is no number
_TINY = 1e-6  # a score below which there is no more to lose
_MOST = 0.99  # of a score, the largest loss that can be a limit
_SHARES = (0.8, 0.2)  # of the 5%, of each try: the first is the one that is made for sure

FEWEST = 15
"""Texts below which nothing is claimed, whatever they lose: harm to one text in five, where all others lose nothing,
stays unseen by so many in one case of thirty."""

SECOND_LIMIT = 5.0
"""The unlike task guards against what the first one does not see, by few items; its limit is so many times as wide."""


def widened(max_loss: float, times: float) -> float:
    """The relative loss that is allowed where the limit is so many times as wide."""
    return min(_MOST, max_loss * times)


def margins(texts: bool, second: bool) -> float:
    """How many times what is allowed in the mean an item is taken to lose at the most.

    Args:
        texts: whether an item is the mean likelihood of parts of a text.
        second: whether these are the numbers of the unlike task.
    """
    return (_MARGINS_OF_NUMBERS if second else _MARGINS_OF_TOKENS) if texts else _MARGINS


def worst_item(lost: np.ndarray, allowed: float, times: float) -> float:
    """The most that an item of the proof is taken to lose, by what those of the search lost.

    A bound on a mean needs to know how much an item can lose. Likelihoods have no end, and texts whose scores are means
    over many questions are too few for a bound that counts on none, so the claim is conditional on this; an item that
    loses more ends the proof. What is rarer than one item in six and larger is what :data:`FEWEST` items are there for.

    Args:
        lost: (items,), what those of the search lost, in nats or in score.
        allowed: what an item may lose in the mean.
        times: what :func:`margins` gives.
    """
    return max(times * allowed, _SEEN * float(lost.max()))


def proof_of(limit: float, of: Literal["perplexity", "score"], attempt: int, worst: float | None) -> Proof:
    """What is to be proved in a try.

    Args:
        limit: the relative loss that is allowed.
        of: what is lost.
        attempt: counted from 1.
        worst: what an item is taken to lose at most.
    """
    return Proof(limit, of=of, worst=worst, attempt=attempt, shares=_SHARES)


def _broken(lost: np.ndarray, worst: float | None) -> bool:
    """Whether an item lost more than the bound counts on."""
    return worst is not None and bool(lost.max() > worst)


def decided(verdict: Verdict, lost: np.ndarray, worst: float | None, fewest: int) -> bool | None:
    """Whether a claim is proved; False where it cannot be any more, None where further items may tell.

    Args:
        verdict: of the items so far.
        lost: (items,), what each of them lost, in nats or in score.
        worst: what the bound counts on that none loses more of; None where it counts on nothing.
        fewest: items below which nothing is claimed.
    """
    if verdict.state == "refuted" or _broken(lost, worst):
        return False
    return True if verdict.state == "proved" and len(lost) >= fewest else None


def bound_of(verdict: Verdict, lost: np.ndarray, worst: float | None, fewest: int) -> float | None:
    """What the loss is below; None where too few items tell, or one lost more than the bound counts on.

    Args:
        verdict, lost, worst, fewest: as :func:`decided` takes them.
    """
    return None if _broken(lost, worst) or len(lost) < fewest or not math.isfinite(verdict.high) else verdict.high


@dataclass(frozen=True)
class Exam:
    """A task with its items.

    Attributes:
        task: how to score.
        data: the items.
        second: whether it is the unlike task, which a good score in the first one must not hide.
        batch: how many forwards that can be scored one without the others make an entry.
        clustered: whether what one forward scores, as many labels for each, hangs together, so that its mean is the
            item. Numbers hidden in one text do.
        groups: for each label the number of its item, from 0 on, where labels that hang together are of different
            forwards, as the sentences of one text are; empty where that is not so. An item's score is their mean.
        beside: whether its scores come along with those of the first exam, from the same forwards.
    """

    task: Task
    data: Prepared
    second: bool = False
    batch: int = 1
    clustered: bool = False
    groups: tuple[int, ...] = ()
    beside: bool = False

    @property
    def items(self) -> int:
        """How many independent ones there are."""
        if self.groups:
            return max(self.groups) + 1
        return len(self.data.payload) if self.clustered else len(self.data.labels)

    @property
    def entries(self) -> int:
        """Parts that can be scored one without the others; 1 where all items belong together."""
        payload = self.data.payload
        apart = isinstance(payload, list) and payload and len(self.data.labels) % len(payload) == 0
        return -(-len(payload) // self.batch) if apart else 1

    @property
    def forwards(self) -> int:
        """How many different forwards :meth:`inputs` knows."""
        return len(self.data.payload) if self._ids(0) is not None else max(1, len(self.data.examples))

    @property
    def of(self) -> Literal["perplexity", "score"]:
        """What is lost: nats, or a share of a score that may be 0."""
        return "score" if self.task.metric.startswith("MRR") or self._counts else "perplexity"

    @property
    def _counts(self) -> bool:
        """Whether scores are neither likelihoods nor known to stay above 0."""
        return not (self._in_nats or self.by_agreement or self.task.name == "saliency")

    @property
    def _in_nats(self) -> bool:
        return "nats" in self.task.metric

    @property
    def by_agreement(self) -> bool:
        """Whether the score is the agreement with the dense model, which has no score of its own."""
        return "cosine to dense" in self.task.metric

    def limit(self, max_loss: float) -> float:
        """The relative loss that is allowed here."""
        return widened(max_loss, SECOND_LIMIT if self.second else 1.0)

    def proof(self, max_loss: float, attempt: int, worst: float | None) -> Proof:
        """What is to be proved.

        Args:
            max_loss: relative, of the exam that decides.
            attempt: counted from 1.
            worst: what :meth:`worst` gave on the search's data.
        """
        return proof_of(self.limit(max_loss), self.of, attempt, worst)

    @property
    def fewest(self) -> int:
        """Items below which nothing is claimed, whatever they lose."""
        return FEWEST if self.clustered or self.groups or self.of == "perplexity" else 1

    def worst(self, own: np.ndarray, dense: np.ndarray, max_loss: float) -> float | None:
        """What :func:`worst_item` gives; None for single scores, which have an end that is not far off."""
        if self.of == "perplexity":
            times = margins(self.clustered, self.second)
            return worst_item(self.lost(own, dense), math.log1p(self.limit(max_loss)), times)
        if not self.groups:
            return None
        allowed = max(self.limit(max_loss) * float(dense.mean()), _TINY)
        return worst_item(self.lost(own, dense), allowed, _MARGINS)  # a text has some dozen sentences

    def lost(self, own: np.ndarray, dense: np.ndarray) -> np.ndarray:
        """(items,): what each lost, in nats or in score."""
        return own - dense if self.of == "perplexity" else dense - own

    def along(self, first: Outcome | None) -> Outcome | None:
        """What came along with the first exam's outcome; None where this one has to be scored by itself."""
        if not self.beside or first is None or first.beside is None:
            return None
        return Outcome(first.beside, None)

    def inputs(self, index: int) -> Inputs:
        """The forward that an entry asks for first; indices go around."""
        ids = self._ids(index)
        if ids is not None:
            return {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
        return self.data.examples[index % len(self.data.examples)]

    def portion(self, start: int, stop: int) -> Exam:
        """Some of the entries; everything where there is one alone."""
        if self.entries == 1:
            return self
        each = len(self.data.labels) // len(self.data.payload)
        start, stop = start * self.batch, stop * self.batch
        payload = self.data.payload[start:stop]
        data = replace(
            self.data, labels=self.data.labels[start * each : stop * each], payload=payload, steps=len(payload)
        )
        return replace(self, data=data)

    def inputs_on(self, device: torch.device, index: int = 0) -> Inputs:
        """The same, with tensors where a model is."""
        return {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.inputs(index).items()
        }

    def _ids(self, index: int) -> Tensor | None:
        """The tokens of an entry, where that is what entries are."""
        payload = self.data.payload
        if self.entries > 1 and self.task.kinds == ("decoder",):
            each = payload[index % len(payload)]
            ids = each[0] if isinstance(each, tuple) else each
            return ids if isinstance(ids, Tensor) else None
        return None

    def outcome(self, pretrained: Pretrained, implementation: str, advance: Callable[[], None]) -> Outcome:
        """What the model makes of the items with an attention."""
        return evaluate(self.task, self.data, pretrained, implementation, advance)

    def scores(self, own: Outcome, dense: Outcome) -> np.ndarray:
        """(items,) as the proof takes them: nats, of which fewer are better, or scores from 0 on.

        Args:
            own: the outcome of a method, or of the dense model itself.
            dense: the dense model's.

        Raises:
            ValueError: a score is not finite.
        """
        found = own.scores if own.scores is not None else cosines(own, dense)
        if found is None or not np.isfinite(found).all():
            raise ValueError(
                f"tune: scores must be finite: {self.task.name} gives {found}; the model's weights or its inputs are "
                "not finite"
            )
        found = np.asarray(found, np.float64)
        if self.clustered:
            found = found.reshape(len(self.data.payload), -1).mean(1)
        if self.groups:
            found = np.bincount(self.groups, found) / np.bincount(self.groups)
        if self._in_nats or self.of == "score":
            return found
        return -np.log(np.maximum(found, _TINY))

    def shown(self, scores: np.ndarray) -> float:
        """The mean of scores in the task's own metric."""
        return float(scores.mean() if self._in_nats or self.of == "score" else np.exp(-scores).mean())

    def loss(self, own: np.ndarray, dense: np.ndarray) -> float:
        """Relative: by how much a perplexity grew, or the share of a score that went."""
        if self.of == "perplexity":
            return math.expm1(min(float((own - dense).mean()), _MOST_NATS))
        return 1 - float(own.mean()) / max(float(dense.mean()), _TINY)

    def says_nothing(self, dense: np.ndarray) -> bool:
        """Whether the dense model itself only guesses."""
        if self.of == "perplexity" and not self._in_nats:
            return False
        return at_chance(tuple(map(float, dense)), self.data.chance, self.task.higher_is_better)

    def refuse_guesses(self, dense: np.ndarray) -> None:
        """Refuse an exam in which the dense model only guesses: it has nothing to lose.

        Raises:
            ValueError: it does.
        """
        if self.says_nothing(dense):
            raise ValueError(
                f"tune: the dense model must do better than guesses: its {self.task.metric} in {self.task.name} is "
                f"{self.shown(dense):.4g}, and {self.data.chance:.4g} is a guess's, so that no loss can be told; see "
                "that weights, tokenizer and texts belong together, or pass other --texts or a --task of your own"
            )


def prepared(task: Task, pretrained: Pretrained, second: bool = False, clustered: bool = False) -> Exam:
    """An exam of a task."""
    return Exam(task, prepare(task, pretrained), second, clustered=clustered)
