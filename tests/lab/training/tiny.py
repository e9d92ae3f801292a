"""A tiny training that takes seconds: a BERT from a config, random weights, two classes; and a way to kill it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynattn.lab.training import Experiment, Job

ITEMS = 24
EXAMPLES = 40
LENGTH = 16

JOB: Callable[[str, int], Job] = partial(
    Job, steps=12, batch=8, learning_rate=3e-3, weight_decay=0.01, evaluate_every=4, save_every=2
)
"""5 steps are an epoch, so that runs are stopped and resumed in their second and third."""


def silent(title: str, steps: int) -> Callable[[], None]:
    return lambda: None


def data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of tokens, and whether token 1 stands in them more often than token 2."""
    ids = torch.randint(1, 8, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return ids, ((ids == 1).sum(1) > (ids == 2).sum(1)).long()


class Classifier(nn.Module):
    def __init__(self, method: str) -> None:
        import transformers

        from dynattn.integrations.transformers import register

        super().__init__()
        config = transformers.BertConfig(
            vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=LENGTH, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        register()
        self.encoder = transformers.BertModel(config, add_pooling_layer=False)
        self.encoder.set_attn_implementation(method if method == "sdpa" else f"dynattn:{method}")
        self.head = nn.Linear(16, 2)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(input_ids=ids).last_hidden_state.mean(1))

    def forward(self, ids: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.cross_entropy(self.logits(ids), label)}


class Tiny(Experiment):
    """From scratch, or as if pretrained; ``models`` counts how many models were made."""

    pretrained = False
    name, metric, higher_is_better, summary = "tiny", "accuracy", True, "made by rule"
    labels = tuple(f"item {i}" for i in range(ITEMS))

    def __init__(self, version: int = 1) -> None:
        self.version, self.models = version, 0

    def identity(self) -> dict[str, Any]:
        return {"version": self.version}

    def model(self, method: str) -> nn.Module:
        self.models += 1
        return Classifier(method)

    def dataset(self) -> torch.utils.data.Dataset:
        return torch.utils.data.TensorDataset(*data(EXAMPLES, seed=0))

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        ids, labels = zip(*examples, strict=True)
        return {"ids": torch.stack(ids), "label": torch.stack(labels)}

    def steps(self) -> int:
        return 1

    def evaluate(self, model: nn.Module, advance: Callable[[], None]) -> np.ndarray:
        ids, labels = data(ITEMS, seed=1)
        with torch.inference_mode():
            logits = model.logits(ids)  # type: ignore[operator]
        advance()
        return torch.sigmoid((logits[:, 1] - logits[:, 0]) * (2 * labels - 1)).double().numpy()

    def save(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir()
        torch.save(model.state_dict(), folder / "weights.pt")


class Pretend(Tiny):
    """The same, from the same weights whatever the seed."""

    pretrained = True

    def model(self, method: str) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return super().model(method)


def train_and_die(folder: Path, method: str, batches: int, in_checkpoint: int) -> None:
    """Run in a process of its own: SIGKILL after ``batches`` batches, or while checkpoint ``in_checkpoint`` is written.

    The kill inside a checkpoint comes when weights and optimizer are there, and the rest is not.
    """
    from transformers import Trainer

    from dynattn.lab.training.run import run

    torch.set_num_threads(1)

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    save = Trainer._save_rng_state

    def save_or_die(trainer: Any, output: str) -> None:
        (die if output.endswith(f"checkpoint-{in_checkpoint}") else partial(save, trainer))(output)

    Trainer._save_rng_state = save_or_die  # type: ignore[method-assign]

    class Dying(Tiny):
        seen = 0

        def collate(self, examples: list[Any]) -> dict[str, Any]:
            self.seen += 1
            if self.seen > batches:
                die()
            return super().collate(examples)

    run(JOB(method, 3), Dying(), folder, silent)
