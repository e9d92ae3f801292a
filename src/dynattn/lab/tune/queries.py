"""Find the passage that a sentence was taken out of: the retrieval task, with each sentence an item of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks import embedding
from dynattn.lab.tasks.base import Outcome, Prepared, Task
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.texts import Text


@final
@dataclass(frozen=True)
class Queries(Task):
    """MRR@10; an item is a sentence that has to find its passage among all of them.

    Args:
        items: passages.
        tokens: the number of tokens of a passage.
        texts: that passages are cut from.
        per_text: the most passages of one text.
        seed: decides which sentences are taken.
    """

    items: int
    tokens: int
    texts: tuple[Text, ...]
    per_text: int = 12
    seed: int = 0

    name: ClassVar[str] = "retrieval"
    kinds: ClassVar[tuple[Kind, ...]] = ("encoder",)
    metric: ClassVar[str] = "MRR@10"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, pretrained: Pretrained) -> Prepared:
        data = self._task().prepare(pretrained)
        labels = [
            f"{passage.label}, sentence {number + 1}"
            for passage in data.payload[0]
            for number in range(len(passage.queries))
        ]
        return replace(data, labels=tuple(labels))

    def words(self, data: Prepared) -> Sequence[str]:
        return self._task().words(data)

    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        passages, tokens = data.payload
        documents = embedding.embed(pretrained, [passage.body for passage in passages], tokens, advance)
        asked = [query for passage in passages for query in passage.queries]
        found = embedding.embed(pretrained, asked, tokens, advance)
        own = np.array([number for number, passage in enumerate(passages) for _ in passage.queries])
        return Outcome(embedding.reciprocal_ranks(found, documents, own), None)

    def _task(self) -> Retrieval:
        return Retrieval(items=self.items, tokens=self.tokens, texts=self.texts, per_text=self.per_text, seed=self.seed)
