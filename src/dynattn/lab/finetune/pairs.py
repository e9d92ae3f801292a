r"""Trains an encoder to find documents, by a contrastive loss with the other documents of a batch as negatives.

    loss = mean over i of −log( exp(s · cos(q_i, d_i)) / Σ_j exp(s · cos(q_i, d_j)) ),   s = 20

Source: arXiv:1705.00652 (multiple negatives ranking) and arXiv:1807.03748 (InfoNCE); the scale is that of the
sentence-transformers project.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dynattn.lab.finetune.pretrained import fresh
from dynattn.lab.models import Pretrained
from dynattn.lab.scoring import prepare
from dynattn.lab.tasks import Manpages, Retrieval, embedding
from dynattn.lab.tasks.base import Inputs, Pair
from dynattn.lab.training.experiment import Experiment, digest

SCALE = 20.0  # the factor of the cosines, an inverse temperature


def ranking_loss(queries: Tensor, documents: Tensor) -> Tensor:
    """The loss above.

    Args:
        queries: (batch, hidden), of length 1.
        documents: (batch, hidden), of length 1; row i answers query i.

    Returns:
        A scalar.
    """
    scores = SCALE * queries @ documents.T  # [batch, batch]
    return nn.functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


class PairModel(nn.Module):
    """An encoder with the loss of a batch of pairs, in one forward, as distributed training needs it."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, query: Inputs, document: Inputs) -> dict[str, Tensor]:
        """``{"loss": scalar}`` for tokenized queries and documents."""
        return {"loss": ranking_loss(embedding.pool(self.encoder, query), embedding.pool(self.encoder, document))}


class Pairs(Experiment):
    """Fine-tune a pretrained encoder to find documents; judged by the task itself, on documents it never saw.

    Args:
        pretrained: the encoder.
        task: gives held-out items and, from other documents, pairs to train on.
    """

    pretrained = True

    def __init__(self, pretrained: Pretrained, task: Manpages | Retrieval) -> None:
        self.base, self.task = pretrained, task
        self.data = prepare(task, pretrained)
        self.examples = task.pairs(pretrained, self.data)
        self.name = f"{Path(pretrained.name).name} on {task.name}"
        self.metric, self.higher_is_better = task.metric, task.higher_is_better
        self.labels, self.chance = self.data.labels, self.data.chance
        self.summary = f"{self.data.summary}; trained on {len(self.examples)} others"

    def identity(self) -> dict[str, Any]:
        texts = (text for pair in self.examples for text in pair)
        return {
            "model": self.base.description, "task": self.task.name, "items": len(self.labels),
            "tokens": self.data.length, "examples": len(self.examples),
            "data": digest([repr(self.data.payload), *texts]),
        }  # fmt: skip

    def model(self, method: str) -> PairModel:
        return PairModel(fresh(self.base.model, method))

    def dataset(self) -> Dataset:
        return cast(Dataset, self.examples)  # a list is a map-style dataset

    def collate(self, examples: Sequence[Pair]) -> dict[str, Any]:
        queries, documents = zip(*examples, strict=True)
        return {
            "query": embedding.inputs(self.base, queries, self.data.length),
            "document": embedding.inputs(self.base, documents, self.data.length),
        }

    def steps(self) -> int:
        return self.data.steps

    def evaluate(self, model: nn.Module, advance: Callable[[], None]) -> np.ndarray:
        trained = dataclasses.replace(self.base, model=cast(PairModel, model).encoder)
        scores = self.task.evaluate(trained, self.data, advance).scores
        return cast(np.ndarray, scores)

    def save(self, model: nn.Module, folder: Path) -> None:
        cast(PairModel, model).encoder.save_pretrained(folder)
        self.base.processor.save_pretrained(folder)
