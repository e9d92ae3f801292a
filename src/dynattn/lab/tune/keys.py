"""Read numbers back that are hidden in a long text, many of them at once: a guard of long-range retrieval.

    The number of <name> is <number>.        somewhere in the text, for each of several names
    The number of <name> is <number>.        at the end, for each of them again: the last number is what is scored

Each number has a score; all of a text are read in one forward, since each is given once it was asked for. Names are
those of the spelling alphabet, so that texts of any language do.

Source: the multi-key retrieval of RULER, arXiv:2404.06654.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks.base import Outcome, Prepared, Task
from dynattn.lab.tasks.perplexity import prefill

_NAMES = (
    "Alpha", "Bravo", "Charlie", "Delta", "Echo", "Foxtrot", "Golf", "Hotel", "India", "Juliet", "Kilo", "Lima", "Mike",
    "November", "Oscar", "Papa", "Quebec", "Romeo", "Sierra", "Tango", "Uniform", "Victor", "Whiskey", "Yankee", "Zulu",
)  # fmt: skip
_STATEMENT = " The number of {name} is"
DIGITS = 5
"""Of a number."""
_TEXT_SHARE = 0.5  # of the tokens, at least


class Hidden(NamedTuple):
    """A text with its questions.

    Attributes:
        ids: (1, length).
        answers: where each answer's tokens begin and end.
        text: (length,) bool, the tokens of the text itself.
    """

    ids: Tensor
    answers: tuple[tuple[int, int], ...]
    text: Tensor


@final
@dataclass(frozen=True)
class Keys(Task):
    """NLL of a number, per token; an item is a number.

    Args:
        pieces: token ids of the texts, (1, length) each.
        keys: numbers in each text; fewer where the text is short.
        seed: draws them.
        whose: what the pieces are, in words that follow their number.
    """

    pieces: tuple[Tensor, ...]
    keys: int = 12
    seed: int = 0
    whose: str = "texts"

    name: ClassVar[str] = "keys"
    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)
    metric: ClassVar[str] = "NLL of a hidden number, nats per token"
    higher_is_better: ClassVar[bool] = False

    def prepare(self, pretrained: Pretrained) -> Prepared:
        draw = random.Random(self.seed)
        built = [self._hide(pretrained.processor, piece, draw) for piece in self.pieces]
        fewest = min(len(each.answers) for each in built)
        if any(len(each.answers) > fewest for each in built):  # as many in each, since a text's mean is the item
            return replace(self, keys=fewest).prepare(pretrained)
        keys, length = len(built[0].answers), built[0].ids.shape[1]
        return Prepared(
            labels=tuple(f"text {i + 1}, number {k + 1}" for i in range(len(built)) for k in range(keys)),
            steps=len(built), examples=tuple(prefill(each.ids) for each in built[:2]), length=length, payload=built,
            summary=f"{keys} numbers hidden in each of {len(built)} {self.whose} of {length} tokens, and asked for",
            chance=DIGITS * math.log(10) / (built[0].answers[0][1] - built[0].answers[0][0]),
        )  # fmt: skip

    @torch.inference_mode()
    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        scores, hits = [], []
        for ids, answers, _ in data.payload:
            ids = ids.to(pretrained.model.device)
            kept = ids.shape[1] - answers[0][0] + 1  # logits from the token before the first answer on
            logits = pretrained.model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[0].float()
            for start, stop in answers:
                at = slice(start - answers[0][0], stop - answers[0][0])
                scores.append(nn.functional.cross_entropy(logits[at], ids[0, start:stop]).item())
                hits.append(float((logits[at].argmax(-1) == ids[0, start:stop]).all()))
            advance()
        return Outcome(np.array(scores), None, np.array(hits))

    def _hide(self, tokenizer: Any, piece: Tensor, draw: random.Random) -> Hidden:
        text = piece[0].tolist()
        for keys in range(min(self.keys, len(_NAMES)), 0, -1):
            names = draw.sample(_NAMES, keys)
            numbers = [str(draw.randrange(10 ** (DIGITS - 1), 10**DIGITS)) for _ in names]
            parts = [
                (_encode(tokenizer, _STATEMENT.format(name=name)), _encode(tokenizer, f" {number}"))
                for name, number in zip(names, numbers, strict=True)
            ]
            end = _encode(tokenizer, ".")
            room = len(text) - 2 * sum(len(said) + len(number) + len(end) for said, number in parts)
            if room >= _TEXT_SHARE * len(text):
                return _joined(text[:room], parts, end, draw.sample(range(keys), keys))
        raise ValueError(
            f"tune: texts must leave room for a hidden number and its question: {len(text)} tokens do not; pass a "
            "longer --length"
        )


def _joined(text: list[int], parts: list[tuple[list[int], list[int]]], end: list[int], order: list[int]) -> Hidden:
    """The statements spread evenly over the text, then the questions in another order, each with its answer."""
    ids, answers, own, last = [], [], [], 0
    for i, (said, number) in enumerate(parts):
        at = round(len(text) * (i + 0.5) / len(parts))
        ids += text[last:at] + said + number + end
        own += [True] * (at - last) + [False] * (len(ids) - len(own) - (at - last))
        last = at
    ids += text[last:]
    own += [True] * (len(ids) - len(own))
    for i in order:
        said, number = parts[i]
        ids += said
        answers.append((len(ids), len(ids) + len(number)))
        ids += number + end
    own += [False] * (len(ids) - len(own))
    return Hidden(torch.tensor([ids], device="cpu"), tuple(answers), torch.tensor(own, device="cpu"))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
