"""Find the passage that a sentence was taken out of (the inverse cloze task) among passages of the same articles.

Each item is a passage of real text, as long as the model takes, less a few of its sentences. Each of those is a query
that has to find its passage by cosine, among all others, most of which are of the same few articles. Whatever
attention loses of a passage's detail shows: topic alone does not tell the passages of one article apart.

Source of the construction: arXiv:1906.00300 (ORQA), where it pretrains a retriever.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import numpy as np

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks import embedding
from dynattn.lab.tasks.base import Outcome, Pair, Prepared, Task
from dynattn.lab.tasks.texts import Text, sentences, wikipedia

_QUERY_TOKENS = (15, 60)  # shorter sentences say too little, longer ones are mostly lists


class _Passage(NamedTuple):
    label: str
    body: str
    queries: tuple[str, ...]


@final
@dataclass(frozen=True)
class Retrieval(Task):
    """Sentence to passage, MRR@10; an item is a passage, its score the mean over its queries.

    Args:
        items: passages.
        tokens: the number of tokens of a passage, fewer where the model takes fewer.
        queries: sentences taken out of each passage.
        per_text: the most passages of one text.
        texts: the texts; None for Wikipedia articles.
        seed: decides which sentences are taken.
    """

    items: int = 96
    tokens: int = 512
    queries: int = 6
    per_text: int = 12
    texts: tuple[Text, ...] | None = None
    seed: int = 0

    name: ClassVar[str] = "retrieval"
    kinds: ClassVar[tuple[Kind, ...]] = ("encoder",)
    metric: ClassVar[str] = "MRR@10"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, pretrained: Pretrained) -> Prepared:
        texts = self._texts()
        tokens = embedding.longest(pretrained, self.tokens)
        passages: list[_Passage] = []
        for text in texts:
            passages += self._passages(pretrained, text, tokens)[: self.items - len(passages)]
            if len(passages) == self.items:
                break
        if len(passages) < 2:
            raise ValueError(
                f"retrieval: texts must give at least 2 passages of {tokens} tokens with {self.queries} sentences to "
                f"spare: {len(texts)} texts give {len(passages)}; pass longer texts, or fewer --tokens"
            )
        examples = tuple(embedding.inputs(pretrained, [passage.body], tokens) for passage in passages[:4])
        articles = len({passage.label.rpartition(" ")[0] for passage in passages})
        noun = ("Wikipedia article" if self.texts is None else "text") + "s" * (articles != 1)
        summary = f"{len(passages)} passages of {tokens} tokens from {articles} {noun}, {self.queries} queries each"
        return Prepared(
            labels=tuple(passage.label for passage in passages),
            steps=embedding.steps(len(passages)) + embedding.steps(len(passages) * self.queries),
            examples=examples,
            length=examples[0]["input_ids"].shape[1],
            summary=summary,
            payload=(passages, tokens),
            chance=embedding.guessed_rank(len(passages)),
        )

    def words(self, data: Prepared) -> Sequence[str]:
        return [passage.body for passage in data.payload[0]]

    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        passages, tokens = data.payload
        documents = embedding.embed(pretrained, [passage.body for passage in passages], tokens, advance)
        asked = [query for passage in passages for query in passage.queries]
        queries = embedding.embed(pretrained, asked, tokens, advance)
        own = [i for i, passage in enumerate(passages) for _ in passage.queries]
        ranks = embedding.reciprocal_ranks(queries, documents, np.array(own))
        return Outcome(ranks.reshape(len(passages), -1).mean(1), documents)

    def pairs(self, pretrained: Pretrained, data: Prepared) -> list[Pair]:
        """To train on: passages of the texts that no item is from, each with one of its sentences.

        Args:
            pretrained: the model that ``data`` was prepared for.
            data: what :meth:`prepare` gave.
        """
        passages, tokens = data.payload
        held_out = {passage.label.rpartition(" ")[0] for passage in passages}
        rest = (text for text in self._texts() if text.title not in held_out)
        found = (passage for text in rest for passage in self._passages(pretrained, text, tokens))
        return [Pair(passage.queries[0], passage.body) for passage in found]

    def _texts(self) -> tuple[Text, ...]:
        return wikipedia() if self.texts is None else self.texts

    def _passages(self, pretrained: Pretrained, text: Text, tokens: int) -> list[_Passage]:
        """Consecutive runs of sentences that still hold ``tokens`` when the queries are out."""
        cut = sentences(text.body)
        if not cut:
            return []
        lengths = [len(ids) for ids in pretrained.processor(cut, add_special_tokens=False)["input_ids"]]
        draw = random.Random(f"{self.seed} {text.title}")
        found: list[_Passage] = []
        start = 0
        while len(found) < self.per_text:
            chosen, stop = self._take(lengths, start, tokens, draw)
            if stop is None:
                break
            if chosen:
                body = " ".join(cut[i] for i in range(start, stop) if i not in chosen)
                label = f"{text.title} {len(found) + 1}"
                found.append(_Passage(label, body, tuple(cut[i] for i in chosen)))
            start = stop
        return found

    def _take(
        self, lengths: Sequence[int], start: int, tokens: int, draw: random.Random
    ) -> tuple[list[int], int | None]:
        """Sentences to ask for and where the passage that starts at ``start`` stops; None at the end of the text."""
        total, stop = 0, start
        while total < tokens + self.queries * _QUERY_TOKENS[1]:
            if stop == len(lengths):
                return [], None
            total += lengths[stop]
            stop += 1
        fit = [i for i in range(start + 1, stop) if _QUERY_TOKENS[0] <= lengths[i] <= _QUERY_TOKENS[1]]
        return (sorted(draw.sample(fit, self.queries)) if len(fit) >= self.queries else []), stop
