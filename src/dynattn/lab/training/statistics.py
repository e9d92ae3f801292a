r"""Confidence intervals of means over seeds and items.

Every seed is judged on the same items, so a difference ``d[s, i]`` varies by seed, by item and by both together:

    d[s, i] = mean + seed[s] + item[i] + rest[s, i]
    variance of the mean = (MS_seed + MS_item − MS_rest) / (S · I)

with the mean squares of a two-way table without replication. To take the items alone would ignore that another seed
gives another model; to take the seeds alone, that other items would have been other questions. The interval is
Student's t with Satterthwaite's degrees of freedom: with 3 seeds that differ it is wide, as it has to be.

Source: Satterthwaite, Biometrics Bulletin 2 (1946); for readers and cases crossed in the same way, Dorfman, Berbaum and
Metz, Investigative Radiology 27 (1992), and Hillis, Statistics in Medicine 26 (2007).
"""

from __future__ import annotations

import numpy as np

from dynattn.lab.statistics import interval
from dynattn.lab.training.results import Contrast

_CONFIDENCE = 0.95


def contrast(values: np.ndarray) -> Contrast:
    """Mean and 95% interval of a table of seeds and items.

    Args:
        values: (seeds, items): scores, or their paired differences.

    Returns:
        Over seeds and items where there are two seeds or more; else a bootstrap over the items, which says so.
    """
    by_seed = [float(value) for value in values.mean(1)]
    if len(values) < 2:
        found = interval(values[0])
        return Contrast(**found.model_dump(), by_seed=by_seed, over="items", degrees=None)
    mean = float(values.mean())
    variance, degrees = _variance(values)
    if variance == 0:
        return Contrast(mean=mean, low=mean, high=mean, by_seed=by_seed, over="seeds and items", degrees=degrees)
    from scipy.stats import t

    half = float(t.ppf(0.5 + _CONFIDENCE / 2, degrees)) * variance**0.5
    return Contrast(
        mean=mean, low=mean - half, high=mean + half, by_seed=by_seed, over="seeds and items", degrees=degrees
    )


def _variance(values: np.ndarray) -> tuple[float, float]:
    """Estimated variance of the mean, and its degrees of freedom."""
    seeds, items = values.shape
    mean, by_seed, by_item = values.mean(), values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    freedom = np.array([seeds - 1, items - 1, (seeds - 1) * (items - 1)])
    squares = np.array([
        items * ((by_seed - mean) ** 2).sum(),
        seeds * ((by_item - mean) ** 2).sum(),
        ((values - by_seed - by_item + mean) ** 2).sum(),
    ])  # fmt: skip
    seed, item, rest = squares / np.maximum(freedom, 1)
    terms = np.array([seed, item, -rest] if item > rest else [seed, 0.0, 0.0])  # a variance is not below zero
    total = terms.sum()
    degrees = total**2 / (terms**2 / np.maximum(freedom, 1)).sum() if total > 0 else float(seeds - 1)
    return float(total / values.size), float(degrees)
