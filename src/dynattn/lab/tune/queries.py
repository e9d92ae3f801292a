"""Find the passage that a sentence was taken out of: the retrieval task, with texts or passages dealt to parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks import embedding
from dynattn.lab.tasks.base import Outcome, Prepared, Task
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.texts import Text
from dynattn.lab.tune import pieces

_EXAMPLES = 4  # passages whose forwards are timed and looked at


@final
@dataclass(frozen=True)
class Queries(Task):
    """MRR@10 of sentences that have to find their passages among all of them.

    Args:
        items: the most passages.
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
        return replace(data, labels=_labels(data.payload[0]))

    def of(
        self, pretrained: Pretrained, data: Prepared, items: Sequence[Sequence[int]], most: int, whose: str
    ) -> tuple[Prepared, tuple[int, ...]]:
        """Some of the passages, and for each of their sentences the number of its item.

        Args:
            pretrained: the model.
            data: of :meth:`prepare`.
            items: the numbers of the passages of each item, of which the first of each are taken first.
            most: passages at the most.
            whose: what the items are, in words that follow their number.
        """
        chosen = sorted(pieces.in_rounds([[(i, p) for p in its] for i, its in enumerate(items)])[:most])
        passages, tokens = [data.payload[0][p] for _, p in chosen], data.payload[1]
        groups = tuple(i for (i, _), passage in zip(chosen, passages, strict=True) for _ in passage.queries)
        asked = sum(len(passage.queries) for passage in passages)
        return replace(
            data, labels=_labels(passages), payload=(passages, tokens),
            steps=embedding.steps(len(passages)) + embedding.steps(asked),
            examples=tuple(embedding.inputs(pretrained, [each.body], tokens) for each in passages[:_EXAMPLES]),
            chance=embedding.guessed_rank(len(passages)),
            summary=f"{max(groups) + 1} {whose}, {len(passages)} passages of {tokens} tokens, {asked} queries",
        ), groups  # fmt: skip

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


def items(data: Prepared, least: int) -> tuple[list[list[int]], str]:
    """The numbers of the passages of each text; where that are too few texts, of each passage, by chance.

    Args:
        data: of :meth:`Queries.prepare`.
        least: items below which there are too few.

    Returns:
        The items, and what they are, in words that follow their number.
    """
    of_texts: dict[str, list[int]] = {}
    for number, passage in enumerate(data.payload[0]):
        of_texts.setdefault(passage.label.rpartition(" ")[0], []).append(number)
    if len(of_texts) >= least:
        return list(of_texts.values()), "texts"
    these = "1 text, and speaking of it" if len(of_texts) == 1 else f"{len(of_texts)} texts, and speaking of these"
    apart = pieces.shuffled([[number] for number in range(len(data.payload[0]))])
    return apart, f"passages, drawn by chance from {these} alone"


def _labels(passages: Sequence[Any]) -> tuple[str, ...]:
    return tuple(
        f"{passage.label}, sentence {number + 1}" for passage in passages for number in range(len(passage.queries))
    )
