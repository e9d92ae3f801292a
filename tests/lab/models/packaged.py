"""The models that packages carry, loaded once."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.lab import models
from dynattn.lab.data.packages import PackageUnavailableError

TEXTS = (
    "The lighthouse keeper counted the ships that passed before the fog came in, and wrote each name in a book.",
    "A short one.",
)


@functools.cache
def pretrained(name: str) -> Any:
    try:
        return models.load(name)
    except (PackageUnavailableError, ImportError) as error:
        pytest.skip(str(error))


def tone(seconds: float = 3.0) -> torch.Tensor:
    """A chirp at 16 kHz."""
    t = torch.linspace(0, seconds, int(16000 * seconds))
    return 0.1 * torch.sin(2 * torch.pi * (200 + 150 * t) * t)


def inputs_for(loaded: models.Pretrained) -> dict[str, torch.Tensor]:
    if loaded.kind == "vision":
        return {"pixel_values": torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))}
    if loaded.kind == "speech":
        features = loaded.processor(tone().numpy(), sampling_rate=16000, return_tensors="pt").input_features
        return {"input_features": features, "decoder_input_ids": torch.tensor([[50258, 50259, 50359, 50363, 440]])}
    loaded.processor.padding_side = "left" if loaded.kind == "decoder" else "right"
    return dict(loaded.processor(list(TEXTS), padding=True, return_tensors="pt"))
