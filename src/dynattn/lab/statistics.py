"""Paired differences, their confidence intervals, and the chance that a gain comes about by luck."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from dynattn.lab.figures import Interval, Quality, Worst
from dynattn.lab.tasks import Outcome, Prepared

RESAMPLES = 9999
FEWEST = 4  # a bootstrap over fewer items says next to nothing, so no interval is given


def interval(differences: np.ndarray, seed: int = 0) -> Interval:
    """Mean of paired differences and its 95% percentile bootstrap interval.

    Args:
        differences: (items,), method less baseline.
        seed: the seed of the resampling.

    Returns:
        The interval; without bounds for fewer than 4 items, and where one is not finite.

    Source: Efron, "Bootstrap methods", Annals of Statistics 7 (1979).
    """
    from scipy.stats import bootstrap

    mean = float(np.mean(differences))
    if len(differences) < FEWEST or not np.isfinite(differences).all():
        return Interval(mean=mean, low=None, high=None)
    if np.ptp(differences) == 0:
        return Interval(mean=mean, low=mean, high=mean)
    found = bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=1000, rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high))


@lru_cache(maxsize=256)  # it is called for every method and cell of a table
def at_chance(scores: tuple[float, ...], chance: float | None, higher_is_better: bool) -> bool:
    """Whether scores say no more than guesses would: then neither does a difference between two methods.

    Args:
        scores: the scores of dense attention, one an item.
        chance: what guessing gives; None where nobody knows it.
        higher_is_better: which way is good.

    Returns:
        True where the interval of the mean does not leave chance behind (with too few items for one, where the mean
        does not), and where a score is not finite.
    """
    if not np.isfinite(scores).all():
        return True
    if chance is None:
        return False
    found = interval(np.subtract(scores, chance))
    bound = found.low if higher_is_better else found.high
    gain = found.mean if bound is None else bound
    return not (gain > 0 if higher_is_better else gain < 0)


def luck(gains: np.ndarray, step: float = 0.0) -> float:
    """How likely a mean gain is that is at least as large, where there is nothing to gain: Student's t, one-sided.

    Few scores that move in steps may all gain the same by chance, and then look as if they had no spread. So the
    variance is taken to be at least that of a coin between two neighbouring scores, step² / 4.

    Args:
        gains: (items,), positive where it got better.
        step: the least difference between two scores that differ; 0 where scores move freely.

    Returns:
        From 0 to 1; 1 where nothing is gained on average, for fewer than 2 items, and where a gain is not finite.
    """
    from scipy.stats import t as student

    if len(gains) < 2 or not np.isfinite(gains).all() or np.mean(gains) <= 0:
        return 1.0
    error = math.sqrt(max(float(np.var(gains, ddof=1)), step * step / 4) / len(gains))
    return float(student.sf(float(np.mean(gains)) / error, len(gains) - 1)) if error else 0.0


def quality(method: str, outcome: Outcome, baseline: Outcome, data: Prepared, higher_is_better: bool) -> Quality:
    """One method's scores beside the baseline's.

    Args:
        method: its short name.
        outcome: the outcome of the method.
        baseline: the outcome of the dense model; the same object for the baseline itself.
        data: names the items.
        higher_is_better: which way is good.
    """
    agreement = cosines(outcome, baseline)
    scores = agreement if outcome.scores is None else outcome.scores
    expected = np.ones(len(data.labels)) if baseline.scores is None else baseline.scores
    if scores is None:
        raise ValueError("quality: an outcome must have scores or outputs: got neither")
    is_baseline = outcome is baseline
    differences = scores - expected
    harm = -differences if higher_is_better else differences
    most = int(np.argmax(harm))
    return Quality(
        method=method,
        score=float(scores.mean()),
        difference=None if is_baseline else interval(differences),
        agreement=None if agreement is None else float(agreement.mean()),
        worst=None if is_baseline or harm[most] <= 0 else _worst(data.labels[most], float(differences[most])),
        scores=[float(score) for score in scores],
    )


def _worst(label: str, difference: float) -> Worst:
    return Worst(item=label, difference=difference)


def cosines(outcome: Outcome, baseline: Outcome) -> np.ndarray | None:
    """(items,): cosine of each item's outputs to the baseline's."""
    if outcome.outputs is None or baseline.outputs is None:
        return None
    a, b = outcome.outputs.astype(np.float64), baseline.outputs.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)
