"""Where a vision transformer and the decoder trained on it look: at objects pasted into photographs.

An item is a crop of a photograph that scikit-learn carries, with one handwritten digit of its data set, coloured, at
a random place; the score is the area under the ROC curve of the saliency map for the digit's pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch

from dynattn.lab.data.samples import digits, photographs, resize
from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.spelling import spelt
from dynattn.lab.tasks.base import Outcome, Prepared, Task, in_dtype

_CROP = 200  # pixels of the photograph: enlarged backgrounds are calm, and the crops differ
_STRIDE = 4  # of the map's pixels that the score looks at: neighbours tell the same


@final
@dataclass(frozen=True)
class Saliency(Task):
    """Area under the ROC curve; an item is a picture.

    Args:
        items: pictures.
        pixels: height and width; a multiple of 14. 518 make 1370 tokens.
        seed: draws crops, digits, colours and places.
    """

    items: int = 8
    pixels: int = 518
    seed: int = 0

    name: ClassVar[str] = "saliency"
    kinds: ClassVar[tuple[Kind, ...]] = ("vision",)
    metric: ClassVar[str] = "area under ROC"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, pretrained: Pretrained) -> Prepared:
        if pretrained.name != "dinov2":
            raise ValueError(
                f"saliency: the model must be dinov2, whose decoder makes the map: got {pretrained.name}; "
                f"use {spelt('--tasks')} features"
            )
        pictures, masks = zip(*self._draw(), strict=True)
        seen = [dict(pretrained.processor(images=p, return_tensors="pt", do_resize=False)) for p in pictures]
        inputs = [in_dtype(pretrained, pixels) for pixels in seen]
        length = 1 + (self.pixels // 14) ** 2
        return Prepared(
            labels=tuple(f"picture {i + 1}" for i in range(len(pictures))),
            steps=len(pictures),
            examples=tuple(inputs[:2]),
            length=length,
            summary=f"{len(pictures)} photographs with one pasted digit, {self.pixels} pixels, {length} tokens",
            payload=(inputs, masks),
            chance=0.5,
        )

    @torch.inference_mode()
    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        from dynattn.lab.models.dinov2 import saliency_decoder

        decoder = saliency_decoder()
        scores, maps = [], []
        for inputs, mask in zip(*data.payload, strict=True):
            tokens = pretrained.model(**inputs).last_hidden_state.float()
            seen = decoder(tokens, (self.pixels, self.pixels))[0, ::_STRIDE, ::_STRIDE].flatten().numpy()
            scores.append(area_under_roc(seen, mask[::_STRIDE, ::_STRIDE].ravel()))
            maps.append(seen - seen.mean())  # centred, so that the cosine to the dense map is their correlation
            advance()
        return Outcome(np.array(scores), np.stack(maps))

    def _draw(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pictures (pixels, pixels, 3) uint8 and masks (pixels, pixels) bool."""
        backgrounds, drawn = photographs(), _digits()
        draw = np.random.default_rng(self.seed)
        out = []
        for i in range(self.items):
            photograph = backgrounds[i % len(backgrounds)]
            top, left = (draw.integers(0, side - _CROP) for side in photograph.shape[:2])
            picture = resize(photograph[top : top + _CROP, left : left + _CROP], self.pixels)
            size = self.pixels // 4
            digit = resize(drawn[draw.integers(len(drawn))][..., None], size)  # [size, size, 1], 0 to 255
            y, x = draw.integers(0, self.pixels - size, 2)
            opacity = np.clip(digit / 128.0, 0, 1)
            patch = picture[y : y + size, x : x + size]
            colour = draw.integers(60, 256, 3)
            picture[y : y + size, x : x + size] = (patch * (1 - opacity) + colour * opacity).astype(np.uint8)
            mask = np.zeros((self.pixels, self.pixels), bool)
            mask[y : y + size, x : x + size] = opacity[..., 0] > 0.5
            out.append((picture, mask))
        return out


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties counting half (Mann and Whitney's U)."""
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    hits = int(positive.sum())
    below = ranks[positive].sum() - hits * (hits + 1) / 2
    return float(below / (hits * (len(scores) - hits)))


def _digits() -> np.ndarray:
    """(1797, 8, 8) uint8."""
    pixels, _ = digits()  # 0 to 16
    return (pixels * (255 / 16)).astype(np.uint8)
