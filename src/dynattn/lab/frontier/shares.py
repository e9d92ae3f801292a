"""Puts scores of different metrics on one scale: the share of dense attention's quality that a method retains.

    retained = score / dense score          where higher is better: ranks, accuracy, area
    retained = exp(dense score - score)     where lower is better: negative log-likelihoods, so that this is the ratio
                                            of the probabilities that the model gives to the right tokens

1 is as good as dense. Differences are paired by item, and their intervals are bootstrapped over the items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dynattn.lab.figures import Interval
from dynattn.lab.statistics import interval


def lead(scores: Sequence[float], other: Sequence[float], dense: Sequence[float], higher_is_better: bool) -> Interval:
    """What a method retains of dense attention's quality, less what another one retains.

    Args:
        scores: the scores of the method, one an item.
        other: the scores of the other method.
        dense: the scores of dense attention.
        higher_is_better: which way is good.

    Returns:
        The difference of the two shares, with the bounds that the paired difference of the scores gives; the mean
        scores that it is divided by are taken as they are.
    """
    found = interval(np.subtract(scores, other))
    if higher_is_better:
        full = float(np.mean(dense))
        return _mapped(found, lambda difference: difference / full)
    others = math.exp(float(np.mean(dense)) - float(np.mean(other)))  # what the other one retains
    return _mapped(found, lambda difference: others * (math.exp(-difference) - 1))


def retained(scores: Sequence[float], dense: Sequence[float], higher_is_better: bool) -> Interval:
    """What a method retains of dense attention's quality: 1 is all.

    Args:
        scores: as :func:`lead`; and so are the others.
        dense: see ``scores``.
        higher_is_better: see ``scores``.
    """
    return _mapped(lead(scores, dense, dense, higher_is_better), lambda difference: 1 + difference)


def together(intervals: Sequence[Interval]) -> Interval:
    """The mean of figures that have intervals: of their means, of their lower and of their upper bounds.

    Items of one task at two lengths are of the same texts, so errors may go together: these bounds hold even if all do,
    and are too wide if they do not.
    """
    mean = float(np.mean([found.mean for found in intervals]))
    bounds = [(found.low, found.high) for found in intervals if found.low is not None and found.high is not None]
    if len(bounds) < len(intervals):
        return Interval(mean=mean, low=None, high=None)
    low, high = np.mean(bounds, axis=0)
    return Interval(mean=mean, low=float(low), high=float(high))


def _mapped(found: Interval, function: Callable[[float], float]) -> Interval:
    """An interval under a monotone function."""
    if found.low is None or found.high is None:
        return Interval(mean=function(found.mean), low=None, high=None)
    low, high = sorted((function(found.low), function(found.high)))
    return Interval(mean=function(found.mean), low=low, high=high)
