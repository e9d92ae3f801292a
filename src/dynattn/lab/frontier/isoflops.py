"""Which size of a model, and how sparse, is best at a budget: models of several sizes at equal FLOPs or bytes.

    cost(model, method) = FLOPs of one input or of a decoding step, or the bytes that a step reads
    best at a budget    = the best mean score among all models and methods whose cost is within the budget

Each size and each sparsity is a point of cost and score. A model's own points make a curve, and the envelope of all
curves says what to take at which budget: a larger model with sparse attention, or a smaller one with dense attention.
All models are asked the same items, so that differences between two models are paired by item as well.

Source: The Sparse Frontier, arXiv:2504.17768.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dynattn.lab.figures import Interval
from dynattn.lab.frontier.cell import DENSE, Entry, Exam, Phase
from dynattn.lab.frontier.methods import is_baseline
from dynattn.lab.frontier.results import Frontier, InputWork, Sheet
from dynattn.lab.frontier.store import merge
from dynattn.lab.frontier.summary import at_chance_in, kept
from dynattn.lab.statistics import interval
from dynattn.lab.tasks.features import Features

_ALIKE = 1e-3  # guesses that differ by less, as a part of them, are of one tokenizer


def _bytes(work: InputWork) -> float | None:
    return None if work.read is None or work.weights is None else work.read + work.weights


COSTS: dict[str, Callable[[InputWork], float | None]] = {"FLOPs": lambda work: work.total, "bytes": _bytes}
"""What a budget may be of: the FLOPs of the whole model, or the bytes of weights and cache that a step reads."""


class Setting(NamedTuple):
    """A model with a method in an exam.

    Attributes:
        model: the name of the model.
        entry: the method.
        cost: what one input costs, or a step of decoding.
        kept: the share of the model's own dense pairs or cache bytes; None where the method keeps no pairs.
        scores: a score for each item.
    """

    model: str
    entry: Entry
    cost: float
    kept: float | None
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mean over the items."""
        return float(np.mean(self.scores))

    @property
    def dense(self) -> bool:
        """Whether attention is dense."""
        return self.entry.name == DENSE.name

    @property
    def label(self) -> str:
        """For people: ``small, dense`` or ``large, top-k 1/4``."""
        return f"{self.model}, {DENSE.family if self.dense else self.entry.label}"


class Ground(NamedTuple):
    """An exam that several models took.

    Attributes:
        sheet: its description, from the first record.
        cost: a key of :data:`COSTS`.
        settings: all models with all methods, the cheapest first.
    """

    sheet: Sheet
    cost: str
    settings: tuple[Setting, ...]

    @property
    def dense(self) -> list[Setting]:
        """The models with dense attention, the smallest first: the one whose forward costs the least."""
        return [setting for setting in self.settings if setting.dense]


class Step(NamedTuple):
    """A part of the envelope: what is best from this cost on, up to the next step's.

    Attributes:
        setting: the model and the method.
        against: the best model with dense attention that costs no more; None where none is as cheap.
        difference: its scores less those of ``against``, paired by item; None where it is that model itself, and where
            there is none.
    """

    setting: Setting
    against: Setting | None
    difference: Interval | None


class Duel(NamedTuple):
    """A larger model with sparse attention against a smaller one with dense attention, at the smaller one's cost.

    Attributes:
        small: the smaller model, with dense attention.
        large: the best setting of the larger model that costs no more; where none does, its cheapest.
        difference: the larger one's scores less the smaller one's, paired by item; None where it costs more.
    """

    small: Setting
    large: Setting
    difference: Interval | None


def grounds(records: Sequence[Frontier], phase: Phase, cost: str) -> list[Ground]:
    """The exams that several models took.

    Methods that look at nothing are left out, and so are exams in which no model does better than guessing with dense
    attention, and those in which each model is held against itself. A model that guesses where another does not is
    there with its score, since that is what its size gives.

    Args:
        records: of at least two models; several of one model are merged.
        phase: the phase of the models' work.
        cost: a key of :data:`COSTS`.

    Returns:
        The exams by task and length; none where no method has such a cost.

    Raises:
        ValueError: fewer than two models, models of different kinds or dtypes, or an exam that asks two models other
            items.
    """
    models = _by_model(records)
    sheets: dict[str, list[tuple[Frontier, Sheet]]] = {}
    for record in models:
        for sheet in record.sheets.values():
            if sheet.exam.phase == phase and sheet.metric != Features.metric and record.grade(sheet.exam) is not None:
                sheets.setdefault(_anonymous(sheet.exam).key, []).append((record, sheet))
    shared = [pairs for pairs in sheets.values() if len(pairs) > 1]
    for pairs in shared:
        for other in pairs[1:]:
            _check_same_exam(pairs[0], other)
    found = []
    for pairs in shared:
        if all(sheet in at_chance_in(record, phase) for record, sheet in pairs):
            continue
        settings = [one for record, sheet in pairs for one in _settings(record, sheet, cost)]
        if len({one.model for one in settings}) > 1:
            found.append(Ground(pairs[0][1], cost, tuple(sorted(settings, key=lambda one: (one.cost, one.label)))))
    return sorted(found, key=lambda one: (one.sheet.exam.task, one.sheet.exam.tokens or 0))


def best(ground: Ground, budget: float) -> Setting | None:
    """Which model, and how sparse, is best at a budget.

    Args:
        ground: the exam.
        budget: the most that may be spent, in the units of the ground's cost.

    Returns:
        The setting with the best mean score, the cheaper one of equals; None where none is as cheap.
    """
    return _best(ground, [one for one in ground.settings if one.cost <= budget])


def envelope(ground: Ground) -> list[Step]:
    """What is best at every budget, the smallest budget first.

    Args:
        ground: the exam.
    """
    steps: list[Step] = []
    for setting in ground.settings:
        if best(ground, setting.cost) != setting:  # beaten by one that costs no more
            continue
        against = _best(ground, [one for one in ground.dense if one.cost <= setting.cost])
        if against is None or against == setting:
            steps.append(Step(setting, against, None))
        else:
            steps.append(Step(setting, against, _difference(setting, against)))
    return steps


def duels(ground: Ground) -> list[Duel]:
    """For each two models, whether the larger one does better when it is so sparse that it costs no more than the
    smaller one with dense attention.

    Args:
        ground: the exam.
    """
    found = []
    for index, small in enumerate(ground.dense):
        for larger in ground.dense[index + 1 :]:
            sparse = [one for one in ground.settings if one.model == larger.model and not one.dense]
            if not sparse:
                continue
            large = _best(ground, [one for one in sparse if one.cost <= small.cost])
            difference = None if large is None else _difference(large, small)
            found.append(Duel(small, sparse[0] if large is None else large, difference))
    return found


def _best(ground: Ground, among: Sequence[Setting]) -> Setting | None:
    sign = 1 if ground.sheet.higher_is_better else -1
    return max(among, key=lambda one: sign * one.score, default=None)  # the first of equals, which is the cheapest


def _difference(setting: Setting, other: Setting) -> Interval:
    return interval(np.subtract(setting.scores, other.scores))


def _by_model(records: Sequence[Frontier]) -> list[Frontier]:
    """One record of each model."""
    grouped: dict[str, list[Frontier]] = {}
    for record in records:
        grouped.setdefault(record.model, []).append(record)
    models = [merge(own) for own in grouped.values()]
    if len(models) < 2:
        raise ValueError(
            f"isoflops: records must be of at least two models: got {', '.join(grouped) or 'none'}; run dynattn "
            "frontier for a smaller or a larger one, with the same tasks, lengths and items"
        )
    if len({record.kind for record in models}) > 1:
        kinds = ", ".join(f"{record.model} ({record.kind})" for record in models)
        raise ValueError(f"isoflops: models must be of one kind: got {kinds}; compare sizes of one kind")
    if len({record.dtype for record in models}) > 1:
        dtypes = ", ".join(f"{record.model} ({record.dtype})" for record in models)
        raise ValueError(
            f"isoflops: records must be of one dtype: got {dtypes}; measure all models in the same --dtype"
        )
    return models


def _settings(record: Frontier, sheet: Sheet, cost: str) -> list[Setting]:
    """A model with each method that took an exam."""
    dense = record.grade(sheet.exam)
    found = []
    for grade in record.grades.values():
        price = COSTS[cost](grade.work)
        if grade.cell.exam != sheet.exam or dense is None or price is None or is_baseline(grade.cell.entry.family):
            continue
        share = kept(grade.work, dense.work)
        found.append(Setting(record.model, grade.cell.entry, price, share, tuple(grade.scores)))
    return found


def _anonymous(exam: Exam) -> Exam:
    """The exam, whoever takes it."""
    return exam.model_copy(update={"model": ""})


def _check_same_exam(first: tuple[Frontier, Sheet], other: tuple[Frontier, Sheet]) -> None:
    (record, sheet), (its_record, its) = first, other
    if (sheet.items, sheet.length, sheet.metric) != (its.items, its.length, its.metric):
        raise ValueError(
            f"isoflops: an exam must ask all models the same items: {sheet.exam.title} does not ask {record.model} "
            f"({sheet.data}) and {its_record.model} ({its.data}) the same; begin one of the records anew"
        )
    # A likelihood is one of the tokenizer's tokens. Vocabularies of one family may be padded to different lengths.
    if not math.isclose(sheet.chance or 0.0, its.chance or 0.0, rel_tol=_ALIKE):
        raise ValueError(
            f"isoflops: a guess must score alike for all models: in {sheet.exam.title} it scores {sheet.chance} for "
            f"{record.model} and {its.chance} for {its_record.model}; take models that share their tokenizer"
        )
