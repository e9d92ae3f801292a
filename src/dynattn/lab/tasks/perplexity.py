"""Measures how well a language model predicts long real texts: the negative log-likelihood, by blocks of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import nn

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks.base import Outcome, Prepared, Task, uniform
from dynattn.lab.tasks.texts import Text, wikipedia


@final
@dataclass(frozen=True)
class Perplexity(Task):
    """NLL per token; an item is a block of consecutive tokens, read with all of the text before it.

    Args:
        items: texts.
        tokens: the number of tokens of a text. The longest texts are taken first, and longer ones are cut.
        block: tokens of an item. Blocks of one text share their history, but hardly the differences of their scores.
        texts: the texts; None for Wikipedia articles.
    """

    items: int = 2
    tokens: int = 2048
    block: int = 128
    texts: tuple[Text, ...] | None = None

    name: ClassVar[str] = "perplexity"
    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)
    metric: ClassVar[str] = "NLL, nats per token"
    higher_is_better: ClassVar[bool] = False

    def prepare(self, pretrained: Pretrained) -> Prepared:
        texts = self._texts()
        read = [
            (text.title, pretrained.processor(text.body[: self.tokens * 20], return_tensors="pt")["input_ids"])
            for text in texts[: self.items]
        ]
        cut = [(title, ids[:, : self.tokens]) for title, ids in read if min(ids.shape[1], self.tokens) > 1]
        if not cut:
            raise ValueError(
                f"perplexity: texts must have at least 2 tokens: of {self.tokens} none has; pass longer texts, or more "
                "--tokens"
            )
        labels = [
            f"{title}, tokens {start}–{min(start + self.block, ids.shape[1]) - 1}"
            for title, ids in cut
            for start in range(0, ids.shape[1] - 1, self.block)
        ]
        kind = "Wikipedia articles" if self.texts is None else "texts"
        longest = cut[0][1].shape[1]
        return Prepared(
            labels=tuple(labels),
            steps=len(cut),
            examples=tuple(prefill(ids) for _, ids in cut[:2]),
            length=longest,
            summary=f"{len(cut)} {kind}, up to {longest} tokens each, in {len(labels)} blocks of {self.block}",
            payload=[ids for _, ids in cut],
            chance=uniform(pretrained),
        )

    def words(self, data: Prepared) -> Sequence[str]:
        return [text.body for text in self._texts()[: self.items]]

    @torch.inference_mode()
    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        scores = []
        for ids in data.payload:
            ids = ids.to(pretrained.model.device)
            logits = pretrained.model(input_ids=ids, use_cache=False).logits[0]
            # computed in parts, since a cross-entropy over all positions would copy the logits
            for start in range(0, ids.shape[1] - 1, self.block):
                target = ids[0, start + 1 : start + self.block + 1]
                scores.append(nn.functional.cross_entropy(logits[start : start + len(target)].float(), target).item())
            advance()
        return Outcome(np.array(scores), None)

    def blocks(self, pretrained: Pretrained, data: Prepared) -> list[torch.Tensor]:
        """To train on: consecutive blocks of ``tokens`` tokens of the texts that no item is from.

        Args:
            pretrained: the model that ``data`` was prepared for.
            data: what :meth:`prepare` gave.

        Returns:
            Token ids, each (tokens,).
        """
        found = []
        for text in self._texts()[self.items :]:
            ids = pretrained.processor(text.body, return_tensors="pt")["input_ids"][0]
            found += [block for block in ids.split(self.tokens) if len(block) == self.tokens]
        return found

    def _texts(self) -> tuple[Text, ...]:
        return wikipedia() if self.texts is None else self.texts


def prefill(ids: torch.Tensor) -> dict:
    """Inputs of a forward as generation starts it: logits of the last position alone."""
    return {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
