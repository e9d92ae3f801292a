"""An arena task as an experiment: the encoder is trained from scratch, and judged by accuracy on held-out sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from dynattn.lab.figures import BASELINE
from dynattn.lab.lra.baselines import Baselines, baselines
from dynattn.lab.lra.data import PADDING, Data, Split
from dynattn.lab.lra.model import Config, Encoder
from dynattn.lab.lra.recipes import Recipe
from dynattn.lab.records import read_json, write_json
from dynattn.lab.training import Experiment
from dynattn.lab.training.kept import AGAIN
from dynattn.lab.training.mixers import mixer

_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"

Example = tuple[np.ndarray, int]
"""Token ids of a sequence and its class."""


class Arena(Experiment):
    """A task of the arena.

    Args:
        name: the name of the task and its size.
        data: its examples.
        recipe: sizes of the model; ``recipe.batch`` sequences are evaluated at a time.

    Attributes:
        config: the config of the model.
        baselines: accuracies without attention, on the same items.
    """

    metric = "accuracy"
    higher_is_better = True
    pretrained: ClassVar[bool] = False

    def __init__(self, name: str, data: Data, recipe: Recipe) -> None:
        self.name, self.data = name, data
        self.config = Config(
            data.vocabulary, data.classes, data.length,
            recipe.width, recipe.layers, recipe.heads, recipe.mlp, recipe.pool, recipe.dropout,
        )  # fmt: skip
        self.baselines: Baselines = baselines(data)
        self.chance = self.baselines.majority
        self.labels = tuple(
            f"sequence {index} of class {label}, {len(tokens)} tokens"
            for index, (tokens, label) in enumerate(zip(data.test.tokens, data.test.labels, strict=True))
        )
        self.summary = (
            f"{len(data.train.labels)} sequences to learn from, {len(data.test.labels)} held out: {data.source}; "
            f"accuracy without attention: {self.baselines}"
        )
        # Sequences of like lengths form a batch, so that little of it is padding.
        order = np.argsort([len(tokens) for tokens in data.test.tokens], kind="stable")
        self._batches = np.split(order, range(recipe.batch, len(order), recipe.batch))

    def identity(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "data": self.data.source,
            "sequences": [len(self.data.train.labels), len(self.data.test.labels)],
            "model": dataclasses.asdict(self.config),
        }

    def model(self, method: str) -> Encoder:
        return Encoder(self.config, None if method == BASELINE else mixer(method))

    def dataset(self) -> Dataset:
        return Sequences(self.data.train)

    def collate(self, examples: list[Example]) -> dict[str, Any]:
        """A batch: ``input_ids``, ``labels``, and ``attention_mask`` where lengths differ between sequences."""
        length = max(len(tokens) for tokens, _ in examples)
        ids = torch.full((len(examples), length), PADDING, device="cpu")
        for row, (tokens, _) in zip(ids, examples, strict=True):
            row[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        batch = {"input_ids": ids, "labels": torch.tensor([label for _, label in examples], device="cpu")}
        return {**batch, "attention_mask": ids != PADDING} if self.data.ragged else batch

    def steps(self) -> int:
        return len(self._batches)

    def evaluate(self, model: nn.Module, advance: Callable[[], None]) -> np.ndarray:
        """(items,) 1 where the class is right, else 0."""
        device = next(model.parameters()).device
        scores = np.zeros(len(self.labels))
        for indices in self._batches:
            batch = {name: tensor.to(device) for name, tensor in self.held_out(indices).items()}
            with torch.inference_mode():
                right = model(**batch)["logits"].argmax(-1) == batch["labels"]
            scores[indices] = right.cpu().numpy()
            advance()
        return scores

    def held_out(self, indices: np.ndarray) -> dict[str, Any]:
        """A batch of held-out sequences."""
        return self.collate([(self.data.test.tokens[i], int(self.data.test.labels[i])) for i in indices])

    def save(self, model: nn.Module, folder: Path) -> None:
        """Weights as safetensors, and the sizes as JSON; :func:`load` reads them."""
        from safetensors.torch import save_model

        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(folder / _WEIGHTS))
        write_json(folder / _CONFIG, dataclasses.asdict(self.config))


class Sequences(Dataset):
    """Sequences with their classes, by index."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> Example:
        return self.split.tokens[index], int(self.split.labels[index])


def load(folder: Path, method: str) -> Encoder:
    """A model that :meth:`Arena.save` wrote.

    Args:
        folder: it was given.
        method: what the attention shall keep, whatever it was trained with; ``sdpa`` for dense. A model of poolings
            has other weights, and takes their name.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: a file is missing, damaged, or of another model.
    """
    from safetensors.torch import load_model

    sizes = read_json(folder / _CONFIG, AGAIN)
    try:
        model = Encoder(Config(**sizes), None if method == BASELINE else mixer(method))
        load_model(model, str(folder / _WEIGHTS))
    except Exception as error:  # damaged files make it raise nearly anything
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"load: {folder} must hold a model's {_CONFIG} and {_WEIGHTS}, whole: {said}; delete the run's folder, and "
            "it is trained again"
        ) from error
    return model.eval()
