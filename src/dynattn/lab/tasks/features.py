"""Measures how far a vision model's features move from the dense model's, for models that have no task of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch

from dynattn.lab.data.samples import photographs
from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks.base import Outcome, Prepared, Task, in_dtype


@final
@dataclass(frozen=True)
class Features(Task):
    """Cosine of the last hidden states to the dense model's; an item is a crop of a photograph.

    Args:
        items: crops.
        seed: draws them.
    """

    items: int = 8
    seed: int = 0

    name: ClassVar[str] = "features"
    kinds: ClassVar[tuple[Kind, ...]] = ("vision",)
    metric: ClassVar[str] = "cosine to dense"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, pretrained: Pretrained) -> Prepared:
        backgrounds = photographs()
        draw = np.random.default_rng(self.seed)
        inputs = []
        for i in range(self.items):
            photograph = backgrounds[i % len(backgrounds)]
            side = int(draw.integers(200, 400))
            top, left = (int(draw.integers(0, n - side)) for n in photograph.shape[:2])
            crop = photograph[top : top + side, left : left + side]
            inputs.append(in_dtype(pretrained, dict(pretrained.processor(images=crop, return_tensors="pt"))))
        with torch.inference_mode():
            length = pretrained.model(**inputs[0]).last_hidden_state.flatten(2).shape[1]
        return Prepared(
            labels=tuple(f"crop {i + 1}" for i in range(self.items)),
            steps=self.items,
            examples=tuple(inputs[:2]),
            length=length,
            summary=f"{self.items} crops of two photographs, {length} tokens",
            payload=inputs,
        )

    @torch.inference_mode()
    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        outputs = []
        for inputs in data.payload:
            outputs.append(pretrained.model(**inputs).last_hidden_state.flatten().float().numpy())
            advance()
        return Outcome(None, np.stack(outputs))
