"""Read back a number hidden far back in real text: what perplexity does not see.

A five-digit key stands at a given depth in a Wikipedia article, the question for it at the end; the score is the
negative log-likelihood of the key. A window that forgets loses it outright. Hits say less: they saturate.

Source of the construction: arXiv:2305.16300 (Landmark Attention).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks.base import Outcome, Prepared, Task
from dynattn.lab.tasks.perplexity import prefill
from dynattn.lab.tasks.recall import score
from dynattn.lab.tasks.texts import Text, wikipedia

_NEEDLE = "\n\nThe secret pass key is {key}. Remember it. {key} is the pass key.\n\n"
_KEYS = 90_000  # of five digits
_QUESTION = "\n\nWhat is the secret pass key? The secret pass key is"


@final
@dataclass(frozen=True)
class Passkey(Task):
    """NLL of the key, per token; an item is a key at one depth.

    Args:
        items: keys, at depths spread evenly from 10% to 90% of the text.
        tokens: the number of tokens of the whole text.
        texts: what the key is hidden in; None for Wikipedia articles.
        seed: draws the keys.
    """

    items: int = 4
    tokens: int = 2048
    texts: tuple[Text, ...] | None = None
    seed: int = 0

    name: ClassVar[str] = "passkey"
    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)
    metric: ClassVar[str] = "NLL of the key, nats per token"
    higher_is_better: ClassVar[bool] = False

    def prepare(self, pretrained: Pretrained) -> Prepared:
        texts = wikipedia() if self.texts is None else self.texts
        draw = random.Random(self.seed)
        depths = np.linspace(0.1, 0.9, self.items) if self.items > 1 else np.array([0.5])
        built = [
            self._hide(pretrained, texts[i % len(texts)], float(depth), draw.randint(10000, 99999))
            for i, depth in enumerate(depths)
        ]
        length = max(ids.shape[1] for ids, _ in built)
        return Prepared(
            labels=tuple(f"depth {depth:.0%}" for depth in depths),
            steps=len(built),
            examples=tuple(prefill(ids) for ids, _ in built[:2]),
            length=length,
            summary=f"{len(built)} five-digit keys, each in {length} tokens of real text",
            payload=built,
            chance=math.log(_KEYS) / float(np.mean([answer for _, answer in built])),
        )

    def words(self, data: Prepared) -> Sequence[str]:
        texts = wikipedia() if self.texts is None else self.texts
        return [text.body for text in texts[: self.items]]

    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        return score(pretrained, data.payload, advance)

    def _hide(self, pretrained: Pretrained, text: Text, depth: float, key: int) -> tuple[torch.Tensor, int]:
        """Token ids (1, length) and how many of them, at the end, are the key."""
        hay, needle, question, answer = (
            pretrained.processor(part, add_special_tokens=False)["input_ids"]
            for part in (text.body[: self.tokens * 20], _NEEDLE.format(key=key), _QUESTION, f" {key}")
        )
        room = self.tokens - len(needle) - len(question) - len(answer)
        if room < 1:
            raise ValueError(f"passkey: tokens must leave room for the key and its question: got {self.tokens}")
        hay = hay[:room]
        at = int(len(hay) * depth)
        ids = hay[:at] + needle + hay[at:] + question + answer
        return torch.tensor([ids], device="cpu"), len(answer)
