"""Photographs to train on, from scikit-image's wheel. They are other ones than the two by which the tasks judge.

An example is a crop, mirrored or not. Into every second one a coloured handwritten digit is pasted, as the saliency
task pastes other digits into other photographs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np
from torch.utils.data import Dataset

from dynattn.lab.data import packages
from dynattn.lab.data.mnist import mnist
from dynattn.lab.data.samples import resize
from dynattn.lab.data.splits import stratified

TRAIN = (
    "astronaut.png", "chelsea.png", "rocket.jpg", "camera.png", "coins.png", "ihc.png", "hubble_deep_field.jpg",
    "grass.png", "gravel.png", "brick.png",
)  # fmt: skip
"""The photographs to learn from."""

HELD_OUT = ("coffee.png", "motorcycle_left.png")
"""The photographs by which a training is followed."""

_PACKAGE = ("scikit-image", "0.25.2")
_SMALLEST = 0.4  # the smallest side of a crop, as a share of the photograph's shorter side
_HELD_OUT_DIGITS = 0.2  # this share of the digits is left to the arena's tests


@final
@dataclass(frozen=True)
class Crops(Dataset):
    """Crops that depend on their index and the seed alone.

    Args:
        names: files of scikit-image's data.
        items: how many.
        pixels: height and width.
        seed: draws photographs, crops, digits, colours and places.
    """

    names: tuple[str, ...]
    items: int
    pixels: int
    seed: int = 0

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> np.ndarray:
        """(pixels, pixels, 3) uint8."""
        if not 0 <= index < self.items:
            raise IndexError(f"Crops: index must be below {self.items}: got {index}")
        draw = np.random.default_rng((self.seed, index))
        photograph = _photograph(self.names[draw.integers(len(self.names))])
        height, width = photograph.shape[:2]
        side = int(min(height, width) * draw.uniform(_SMALLEST, 1))
        top, left = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
        crop = photograph[top : top + side, left : left + side]
        picture = resize(crop[:, ::-1] if draw.random() < 0.5 else crop, self.pixels)
        return _paste(picture, draw) if draw.random() < 0.5 else picture


def _paste(picture: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture with a digit of an eighth to a third of its side."""
    digits, pixels = _digits(), len(picture)
    size = int(draw.integers(pixels // 8, pixels // 3 + 1))
    digit = resize(digits[draw.integers(len(digits))][..., None], size)  # [size, size, 1], 0 to 255
    y, x = draw.integers(0, pixels - size + 1, 2)
    opacity = np.clip(digit / 128.0, 0, 1)
    patch = picture[y : y + size, x : x + size]
    picture[y : y + size, x : x + size] = (patch * (1 - opacity) + draw.integers(60, 256, 3) * opacity).astype(np.uint8)
    return picture


@cache
def _photograph(name: str) -> np.ndarray:
    """(height, width, 3) uint8; grey ones have three equal channels."""
    from PIL import Image

    path = packages.folder(*_PACKAGE, module="skimage") / "data" / name
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@cache
def _digits() -> np.ndarray:
    """(4000, 28, 28) uint8: MNIST's, of which the saliency task, with scikit-learn's, has none."""
    pixels, shown = mnist()
    learnt, _ = stratified(shown, _HELD_OUT_DIGITS, seed=0)
    return np.round(pixels[learnt]).astype(np.uint8)
