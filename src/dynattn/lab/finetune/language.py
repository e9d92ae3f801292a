"""Fine-tunes a decoder to predict text: the next tokens in blocks of long real texts."""

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
from dynattn.lab.tasks import Perplexity
from dynattn.lab.training.experiment import Experiment, digest


class Language(Experiment):
    """Fine-tune a pretrained decoder on texts; judged by its loss on other texts.

    Args:
        pretrained: the decoder.
        task: gives held-out texts and blocks of others to train on.
    """

    pretrained = True

    def __init__(self, pretrained: Pretrained, task: Perplexity) -> None:
        self.base, self.task = pretrained, task
        self.data = prepare(task, pretrained)
        self.blocks = task.blocks(pretrained, self.data)
        self.name = f"{Path(pretrained.name).name} on {task.name}"
        self.metric, self.higher_is_better = task.metric, task.higher_is_better
        self.labels, self.chance = self.data.labels, self.data.chance
        self.summary = f"{self.data.summary}; trained on {len(self.blocks)} blocks of {task.tokens} tokens of others"

    def identity(self) -> dict[str, Any]:
        return {
            "model": self.base.description, "task": self.task.name, "items": len(self.labels),
            "tokens": self.task.tokens, "blocks": len(self.blocks),
            "data": digest(str(ids.tolist()) for ids in (*self.data.payload, *self.blocks)),
        }  # fmt: skip

    def model(self, method: str) -> nn.Module:
        return fresh(self.base.model, method)

    def dataset(self) -> Dataset:
        return cast(Dataset, self.blocks)  # a list is a map-style dataset

    def collate(self, examples: Sequence[Tensor]) -> dict[str, Any]:
        ids = torch.stack(list(examples))  # [batch, tokens]
        return {"input_ids": ids, "labels": ids}  # the model shifts the labels by one itself

    def steps(self) -> int:
        return self.data.steps

    def evaluate(self, model: nn.Module, advance: Callable[[], None]) -> np.ndarray:
        scores = self.task.evaluate(dataclasses.replace(self.base, model=model), self.data, advance).scores
        return cast(np.ndarray, scores)

    def save(self, model: nn.Module, folder: Path) -> None:
        cast(Any, model).save_pretrained(folder)
        self.base.processor.save_pretrained(folder)
