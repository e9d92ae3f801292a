"""Splits a data set into two parts that have no example in common."""

from __future__ import annotations

import numpy as np


def stratified(labels: np.ndarray, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a split in which every class has the same share in both parts, up to rounding.

    Args:
        labels: (examples,), what is to be spread evenly: the class, or a finer group.
        held_out: the share of the second part, between 0 and 1.
        seed: the seed of the shuffling.

    Returns:
        Two sorted arrays of indices, without one in common.
    """
    draw = np.random.default_rng(seed)
    groups = [draw.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    cuts = [round(len(group) * held_out) for group in groups]
    test = np.sort(np.concatenate([group[:cut] for group, cut in zip(groups, cuts, strict=True)]))
    train = np.sort(np.concatenate([group[cut:] for group, cut in zip(groups, cuts, strict=True)]))
    return train, test
