"""Recordings of speech, of which there are few: an item is a token of a transcript, after all tokens before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import nn

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks.base import Inputs, Outcome, Prepared, Task
from dynattn.lab.tasks.speech import PROMPT, Speech


@final
@dataclass(frozen=True)
class Spoken(Task):
    """NLL of a token of a transcript; every so manyth recording takes part.

    Args:
        part: the first recording.
        parts: recordings from one to the next.
    """

    part: int = 0
    parts: int = 1

    name: ClassVar[str] = "speech"
    kinds: ClassVar[tuple[Kind, ...]] = ("speech",)
    metric: ClassVar[str] = "NLL of a token of the transcript, nats"
    higher_is_better: ClassVar[bool] = False

    def prepare(self, pretrained: Pretrained) -> Prepared:
        return self.of(Speech(items=2**10).prepare(pretrained))

    def of(self, data: Prepared) -> Prepared:
        """The part of what all recordings give.

        Args:
            data: of :class:`dynattn.lab.tasks.speech.Speech`.
        """
        built, names = data.payload[self.part :: self.parts], data.labels[self.part :: self.parts]
        labels = [
            f"{name}, token {number + 1}"
            for name, tokens in zip(names, map(_tokens, built), strict=True)
            for number in range(tokens)
        ]
        return Prepared(
            labels=tuple(labels), steps=len(built), examples=tuple({**inputs, "use_cache": False} for inputs in built),
            length=data.length, payload=built, chance=data.chance,
            summary=f"{len(labels)} tokens of the transcripts of {len(built)} recordings",
        )  # fmt: skip

    @torch.inference_mode()
    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        scores: list[float] = []
        for inputs in data.payload:
            said = inputs["decoder_input_ids"][0, len(PROMPT) :]
            logits = pretrained.model(**inputs, use_cache=False).logits[0, len(PROMPT) - 1 : -1].float()
            scores += nn.functional.cross_entropy(logits, said, reduction="none").tolist()
            advance()
        return Outcome(np.array(scores), None)


def _tokens(inputs: Inputs) -> int:
    return inputs["decoder_input_ids"].shape[1] - len(PROMPT)
