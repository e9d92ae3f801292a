"""A toy task that attention learns at once."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("accelerate")

from dynattn.lab.lra.data import Data, Split
from dynattn.lab.lra.recipes import Recipe


def silent(title, steps):
    return lambda: None


def toy(train=256, test=48, seed=0) -> Data:
    """Sequences of 5 to 20 tokens from 1 to 8; the class is whether the 8 occurs, which attention finds at once."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(train + test) % 2)
    tokens = []
    for label in labels:
        each = draw.integers(1, 8, draw.integers(5, 21)).astype(np.uint16)
        each[draw.integers(len(each))] = 8 if label else 7
        tokens.append(each)
    parts = Split(tokens[:train], labels[:train]), Split(tokens[train:], labels[train:])
    return Data(*parts, vocabulary=9, classes=2, length=24, ragged=True, source="sequences with an 8 and without")


def recipe(**changes) -> Recipe:
    return Recipe(**{"data": toy, "width": 16, "layers": 1, "heads": 2, "mlp": 32, "pool": "mean", "dropout": 0.0,
                     "steps": 60, "batch": 16, "learning_rate": 1e-2} | changes)  # fmt: skip
