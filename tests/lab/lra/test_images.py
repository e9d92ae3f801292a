"""Pictures as sequences: the right pixels in the right order, and splits that share nothing."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from dynattn.lab.data import packages
from dynattn.lab.data.splits import stratified
from dynattn.lab.lra import images
from dynattn.lab.tasks import DataMissingError


def test_digits_are_their_pixels_row_after_row():
    from sklearn.datasets import load_digits

    (pixels, labels), data = load_digits(return_X_y=True), images.digits()
    assert (len(data.train.tokens), len(data.test.tokens)) == (1438, 359)
    assert (data.vocabulary, data.classes, data.length, data.ragged) == (18, 10, 64, False)
    originals = {(tuple(row), label) for row, label in zip(pixels.astype(int), labels, strict=True)}
    for part in (data.train, data.test):
        assert {(tuple(t.astype(int) - 1), y) for t, y in zip(part.tokens, part.labels, strict=True)} <= originals
    everything = [tuple(t) for part in (data.train, data.test) for t in part.tokens]
    assert len(set(everything)) == len(everything) == 1797


def test_mnist_is_read_from_the_wheels_table(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 256, (50, 784)), np.repeat(np.arange(10), 5)
    (tmp_path / "data" / "data").mkdir(parents=True)
    with gzip.open(tmp_path / "data" / "data" / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, np.column_stack([pixels, labels]), "%d", delimiter=",")
    monkeypatch.setattr(packages, "folder", lambda name, version, sha256: tmp_path)
    data = images.mnist()
    assert (data.vocabulary, data.length) == (257, 784)
    rows = {tuple(row): label for row, label in zip(pixels, labels, strict=True)}
    for part, size in ((data.train, 4), (data.test, 1)):
        assert [rows[tuple(t.astype(int) - 1)] for t in part.tokens] == list(part.labels)
        assert list(np.bincount(part.labels)) == [size] * 10


@pytest.fixture
def fashion(tmp_path):
    """A data set of the same format: 4 pictures to learn from, 3 held out."""
    draw, made = np.random.default_rng(1), {}
    for name, count in (("train", 4), ("t10k", 3)):
        made[name] = draw.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8)
        with gzip.open(tmp_path / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4B3i", 0, 0, 8, 3, count, 28, 28) + made[name][0].tobytes())
        with gzip.open(tmp_path / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4Bi", 0, 0, 8, 1, count) + made[name][1].tobytes())
    return tmp_path, made


def test_fashion_is_read_and_shrunk(fashion):
    folder, made = fashion
    full, half = images.fashion(folder=folder), images.fashion(pixels=14, train=2, folder=folder)
    for part, name in ((full.train, "train"), (full.test, "t10k")):
        assert np.array_equal(np.stack(part.tokens).reshape(-1, 28, 28) - 1, made[name][0])
        assert np.array_equal(part.labels, made[name][1])
    assert (full.length, half.length, len(half.train.tokens), len(half.test.tokens)) == (784, 196, 2, 3)
    first = made["train"][0][0].astype(float)
    corner = first[:2, 2:4].mean()  # second pixel of the first row
    assert half.train.tokens[0][1] - 1 == np.round(corner)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataMissingError, match="apt-get install dataset-fashion-mnist"):
        images.fashion(folder=tmp_path)
    with pytest.raises(ValueError, match="pixels must divide 28: got 13"):
        images.fashion(pixels=13, folder=tmp_path)


def test_a_split_spreads_every_class_and_loses_none():
    labels = np.array([0] * 10 + [1] * 25 + [2] * 5)
    train, test = stratified(labels, 0.2, seed=0)
    assert list(np.bincount(labels[test])) == [2, 5, 1]
    assert sorted([*train, *test]) == list(range(40))
    assert not np.array_equal(test, stratified(labels, 0.2, seed=1)[1])
