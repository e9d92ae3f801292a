"""Crops to train on: they depend on their index alone, and are not of the pictures that tasks judge by."""

from __future__ import annotations

import numpy as np
import pytest

from dynattn.lab.data import pictures
from dynattn.lab.data.pictures import HELD_OUT, TRAIN, Crops

PIXELS = 32


@pytest.fixture(autouse=True)
def data(monkeypatch):
    """Photographs of one grey value each, and white digits."""
    greys = {name: 10 + i for i, name in enumerate((*TRAIN, *HELD_OUT))}
    monkeypatch.setattr(pictures, "_photograph", lambda name: np.full((60, 90, 3), greys[name], np.uint8))
    monkeypatch.setattr(pictures, "_digits", lambda: np.full((5, 28, 28), 255, np.uint8))
    return greys


def test_an_example_depends_on_its_index_and_the_seed():
    first, again, other = (Crops(TRAIN, 20, PIXELS, seed) for seed in (0, 0, 1))
    assert len(first) == 20
    assert all(np.array_equal(first[i], again[i]) for i in (7, 0, 7))
    assert any(not np.array_equal(first[i], other[i]) for i in range(20))
    with pytest.raises(IndexError, match="below 20"):
        first[20]


def test_half_of_them_hold_a_digit_of_the_promised_size(data):
    crops = Crops(TRAIN, 200, PIXELS)
    with_digit = 0
    for i in range(200):
        picture = crops[i]
        assert picture.shape == (PIXELS, PIXELS, 3)
        assert picture.dtype == np.uint8
        grey = [value for value in data.values() if (picture == value).all(-1).any()]
        pasted = (picture != grey[0]).any(-1).sum()
        if pasted:
            with_digit += 1
            assert (PIXELS // 8) ** 2 <= pasted <= (PIXELS // 3) ** 2
    assert 70 < with_digit < 130


def test_photographs_are_held_apart(data):
    assert not set(TRAIN) & set(HELD_OUT)
    held = {data[name] for name in HELD_OUT}
    assert not any(held & set(np.unique(Crops(TRAIN, 50, PIXELS)[i][0, 0])) for i in range(50))


@pytest.mark.parametrize("axis", [0, 1])
def test_places_reach_every_edge(monkeypatch, axis):
    """Crops may lie at any side of their photograph: of a ramp, both ends are seen."""
    ramp = np.broadcast_to(np.expand_dims(np.arange(80, dtype=np.uint8), (1 - axis, 2)), (80, 80, 3))
    monkeypatch.setattr(pictures, "_photograph", lambda name: ramp)
    crops = [Crops(("any",), 200, PIXELS)[i] for i in range(200)]
    assert min(crop.min() for crop in crops) <= 1
    assert min(crop.max() for crop in crops) < 50  # a small one at the beginning
    assert max(crop.min() for crop in crops) > 30  # and one at the end
