"""Trains a pretrained encoder with a new head to put capitals and punctuation back into text that has lost them.

People do this with transcripts of speech. The encoder has never done it, so there is room to learn. Every word is a
question, so a little data teaches much. And what a word needs depends on the words around it, which is the work of
attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dynattn.lab.finetune.pretrained import with_head
from dynattn.lab.finetune.writing import CLASSES, IGNORED, Passage, encode, f1, passages
from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.scoring import check_known
from dynattn.lab.tasks import embedding
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.tasks.texts import Text, wikipedia
from dynattn.lab.training.experiment import Experiment, digest

_BATCH = 8  # so many passages are evaluated at once
_EVERY = 5  # every fifth text is held out


class Tagger(nn.Module):
    """A token classifier with the loss of a batch, in one forward, as distributed training needs it."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, given: Inputs, labels: Tensor) -> dict[str, Tensor]:
        """``{"loss": scalar}``: cross entropy, mean over the words of the batch."""
        logits = self.classifier(**given).logits  # [batch, length, classes]
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)}


def split(texts: Sequence[Text]) -> tuple[list[Text], list[Text]]:
    """Texts to judge by, and the others, to train on."""
    return list(texts[::_EVERY]), [text for i, text in enumerate(texts) if i % _EVERY]


def only_encoders(kind: Kind, model: str) -> None:
    """Raise ValueError for a model of another kind; it need not be loaded for this."""
    if kind != "encoder":
        raise ValueError(
            f"restore: the model must be an encoder: {model} is {kind}; decoders are trained on perplexity"
        )


class Restore(Experiment):
    """Fine-tune an encoder to put capitals and punctuation back; judged on passages of texts that it never saw.

    Args:
        pretrained: the encoder.
        items: held-out passages, from as many texts as there are for that.
        tokens: the number of tokens of a passage, fewer where the model takes fewer.
        texts: the texts; None for Wikipedia articles.

    Raises:
        ValueError: the model is no encoder, its tokenizer does not tell where tokens come from, or the texts are too
            short.
    """

    task: ClassVar[str] = "restore"
    metric, higher_is_better = "F1 of capitals and punctuation", True
    pretrained = False  # the head is new, so there is nothing to judge before training

    def __init__(self, pretrained: Pretrained, items: int, tokens: int, texts: Sequence[Text] | None = None) -> None:
        _check(pretrained)
        self.base, self.tokens = pretrained, embedding.longest(pretrained, tokens)
        if items < 2:
            raise ValueError(f"restore: items must be at least 2: got {items}; leave --items out for the default")
        added = pretrained.processor.num_special_tokens_to_add()
        if self.tokens <= added:
            raise ValueError(
                f"restore: tokens must leave room for words: got {self.tokens}, of which the tokenizer adds {added}; "
                "pass more --tokens, or leave them out"
            )
        noun = "Wikipedia articles" if texts is None else "texts"
        held_out, others = split(wikipedia() if texts is None else texts)
        self.items = _in_turn([passages(self.base.processor, text, self.tokens) for text in held_out])[:items]
        if len(self.items) < 2:
            raise ValueError(
                f"restore: held-out texts must give at least 2 passages of {self.tokens} tokens: {len(held_out)} texts "
                f"give {len(self.items)}; pass longer or more texts, or fewer --tokens"
            )
        cut = [passages(self.base.processor, text, self.tokens) for text in others]
        self.examples = [passage for found in cut for passage in found]
        self.name = f"{Path(pretrained.name).name} on {self.task}"
        check_known(pretrained, [passage.read for passage in (*self.items, *self.examples)], self.task)
        self.chance = 0.0  # the score of a model that puts nothing back
        self.labels = tuple(passage.label for passage in self.items)
        self.summary = (
            f"{len(self.items)} passages of {self.tokens} tokens from {len({_title(item) for item in self.items})} "
            f"{noun}, in lower case and without punctuation; trained on {len(self.examples)} passages of "
            f"{sum(map(bool, cut))} others"
        )

    def identity(self) -> dict[str, Any]:
        return {
            "model": self.base.description, "task": self.task, "items": len(self.items), "tokens": self.tokens,
            "examples": len(self.examples), "data": digest(repr(passage) for passage in (*self.items, *self.examples)),
        }  # fmt: skip

    def model(self, method: str) -> Tagger:
        return Tagger(with_head(self.base.model, method, CLASSES))

    def dataset(self) -> Dataset:
        return cast(Dataset, self.examples)  # a list is a map-style dataset

    def collate(self, examples: Sequence[Passage]) -> dict[str, Any]:
        given, labels = encode(self.base.processor, examples, self.tokens)
        return {"given": given, "labels": labels}

    def steps(self) -> int:
        return -(-len(self.items) // _BATCH)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, advance: Callable[[], None]) -> np.ndarray:
        classifier = cast(Any, model).classifier
        scores = []
        for start in range(0, len(self.items), _BATCH):
            given, labels = encode(self.base.processor, self.items[start : start + _BATCH], self.tokens)
            said = classifier(**{name: x.to(classifier.device) for name, x in given.items()}).logits.argmax(-1).cpu()
            for row, there in zip(said, labels, strict=True):
                words = there != IGNORED
                scores.append(f1(row[words], there[words]))
            advance()
        return np.array(scores)

    def save(self, model: nn.Module, folder: Path) -> None:
        cast(Any, model).classifier.save_pretrained(folder)
        self.base.processor.save_pretrained(folder)


def _check(pretrained: Pretrained) -> None:
    only_encoders(pretrained.kind, pretrained.name)
    if not pretrained.processor.is_fast:
        raise ValueError(
            f"restore: the tokenizer must be a fast one, which tells where tokens come from: {pretrained.name} has "
            f"{type(pretrained.processor).__name__}; save it as tokenizer.json, or name another --task"
        )


def _in_turn(found: Sequence[Sequence[Passage]]) -> list[Passage]:
    """The first passage of each text, then the second of each, and so on."""
    turns = itertools.zip_longest(*found)
    return [passage for turn in turns for passage in turn if passage is not None]


def _title(passage: Passage) -> str:
    return passage.label.rpartition(" ")[0]
