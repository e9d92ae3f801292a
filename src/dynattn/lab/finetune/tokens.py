"""Trains DynamicViT's predictors, which learn from the dense model which tokens a vision transformer can do without.

    loss = 0.5 · mean (c − c')² + 0.5 · Σ_i D_i mean (t_i − t'_i)² / Σ_i D_i + 2 · mean_s (ρ^s − mean_i D_i^s)²

No labels are needed: the dense model is the teacher, and its class token c' and its tokens t' are the targets.

Source: arXiv:2106.02034; see :mod:`dynattn.pruning.distillation`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Pretrained
from dynattn.lab.training.experiment import Experiment
from dynattn.pruning.distillation import Weights, terms
from dynattn.pruning.dynamicvit import DynamicViT
from dynattn.pruning.predictor import Predictors

_BATCH = 4  # so many pictures are evaluated at once

Pictures = Sequence[np.ndarray]
"""A map-style dataset of (height, width, 3) uint8, all of one size."""


class Student(nn.Module):
    """A model with predictors, and its loss against the dense model.

    Args:
        model: a Transformers vision model that gives ``last_hidden_state``.
        predictors: the predictors that are to be trained.
        train_all: whether the model is trained too; its teacher is then a copy of what it was.
    """

    def __init__(self, model: Any, predictors: Predictors, train_all: bool) -> None:
        super().__init__()
        self.model, self.predictors = model, predictors
        self.copy = copy.deepcopy(model).requires_grad_(False) if train_all else None
        self.model.requires_grad_(train_all)

    @property
    def teacher(self) -> Any:
        """The dense model: what the model was before any training."""
        return self.model if self.copy is None else self.copy

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """``{"loss": scalar}`` of (batch, 3, height, width)."""
        with torch.no_grad():
            dense = self.teacher(pixel_values).last_hidden_state
        with DynamicViT(self.predictors).training(self.model) as drawn:
            hidden = self.model(pixel_values).last_hidden_state
        return {"loss": terms(hidden, dense, drawn.decisions, self.predictors.keep_ratio).total(Weights())}


class TokenDropping(Experiment):
    """Train predictors on pictures; judged by how near the gathered model's features are to the dense ones.

    Args:
        pretrained: the vision model.
        pictures: the pictures to learn from.
        held_out: the pictures to judge by.
        keep_ratio: share of a stage's tokens that it leaves.
        layers: before which tokens are dropped.
        train_all: whether the model is trained too, not its predictors alone.
        source: the source of the pictures, a line for people; it is part of the run's identity.
    """

    pretrained = False  # predictors begin with random choices
    metric, higher_is_better = "cosine to dense", True

    def __init__(
        self,
        pretrained: Pretrained,
        pictures: Pictures,
        held_out: Pictures,
        source: str,
        keep_ratio: float = 0.7,
        layers: tuple[int, ...] = (3, 6, 9),
        train_all: bool = False,
    ) -> None:
        self.base, self.pictures, self.held_out = pretrained, pictures, held_out
        self.keep_ratio, self.layers, self.train_all, self.source = keep_ratio, layers, train_all, source
        self.name = f"{Path(pretrained.name).name} with {keep_ratio:g} of its tokens a stage"
        self.labels = tuple(f"picture {i + 1}" for i in range(len(held_out)))
        self.summary = f"{len(pictures)} pictures to learn from, {len(held_out)} others to judge by: {source}"

    def identity(self) -> dict[str, Any]:
        return {
            "model": self.base.description, "source": self.source, "pictures": len(self.pictures),
            "held_out": len(self.held_out), "pixels": list(self.held_out[0].shape[:2]),
            "keep_ratio": self.keep_ratio, "layers": self.layers, "train_all": self.train_all,
        }  # fmt: skip

    def model(self, method: str) -> Student:
        if method != BASELINE:
            raise ValueError(
                f"TokenDropping: predictors are trained with dense attention: got {method!r}; use {BASELINE!r}"
            )
        model = copy.deepcopy(self.base.model)
        return Student(model, Predictors(model.config.hidden_size, self.layers, self.keep_ratio), self.train_all)

    def dataset(self) -> Dataset:
        return cast(Dataset, self.pictures)

    def collate(self, examples: Pictures) -> dict[str, Any]:
        return dict(self.base.processor(images=list(examples), return_tensors="pt", do_resize=False))

    def steps(self) -> int:
        return -(-len(self.held_out) // _BATCH)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, advance: Callable[[], None]) -> np.ndarray:
        student, found = cast(Student, model), []
        for start in range(0, len(self.held_out), _BATCH):
            end = min(start + _BATCH, len(self.held_out))
            pixels = self.collate([self.held_out[i] for i in range(start, end)])["pixel_values"]
            pixels = pixels.to(next(student.parameters()).device)
            dense = student.teacher(pixels).last_hidden_state
            with DynamicViT(student.predictors).apply(student.model):
                hidden = student.model(pixels).last_hidden_state
            found.append(nn.functional.cosine_similarity(hidden.flatten(1), dense.flatten(1)).double().cpu().numpy())
            advance()
        return np.concatenate(found)

    def save(self, model: nn.Module, folder: Path) -> None:
        student = cast(Student, model)
        student.predictors.save(folder)
        if self.train_all:
            student.model.save_pretrained(folder)
