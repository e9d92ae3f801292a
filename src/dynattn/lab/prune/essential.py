"""Essential sparsity: how many weights can be set to 0 at once before the score falls off.

    knee = the largest sparsity with at least 99% of the whole model's score

Source: "The Emergence of Essential Sparsity in Large Pre-trained Models", arXiv:2306.03805; the knee as a number is
this project's definition.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynattn.lab.calibration import thinned_out
from dynattn.lab.figures import BASELINE, Interval, Record
from dynattn.lab.prune.run import Exam, held_out, retained_in, scores
from dynattn.lab.scoring import evaluate
from dynattn.sparsity import WeightSparsity, parse

KNEE = 0.99


class Thinned(Record):
    """A model with some weights at 0.

    Attributes:
        name: the method's.
        sparsity: the share of the linear layers' weights that are 0.
        validation: what is retained of the whole model's quality, on the items by which a knee is found.
        held_out: likewise, on the other items.
    """

    name: str
    sparsity: float
    validation: Interval
    held_out: Interval


def thinned(exam: Exam, name: str) -> Thinned:
    """Score a model without some of its weights.

    Args:
        exam: the model and its items.
        name: of a method of :mod:`dynattn.sparsity` that sets weights to 0.

    Raises:
        ValueError: no such method has this name.
    """
    method = parse(name)
    if not isinstance(method, WeightSparsity):
        raise ValueError(f"thinned: name must be of a method that sets weights to 0: got {name!r}; try 'magnitude-0.5'")
    with thinned_out(exam.pretrained, method) as kept:
        outcome = evaluate(exam.task, exam.data, exam.pretrained, BASELINE, lambda: None)
    found = scores(outcome, exam.whole)
    validation = retained_in(exam, found, slice(exam.validation))
    return Thinned(name=name, sparsity=1 - kept.share, validation=validation, held_out=held_out(exam, found))


def knee(curve: Sequence[Thinned], least: float = KNEE) -> Thinned | None:
    """The sparsest one whose mean score on validation items is at least a share of the whole model's.

    Args:
        curve: methods of one family.
        least: the share.

    Returns:
        The sparsest; None where all lose more.
    """
    enough = [one for one in curve if one.validation.mean >= least]
    return max(enough, key=lambda one: one.sparsity, default=None)
