"""Needles with identifiers: of several that stand in a long text, the values of four keys are asked for.

    One of the special magic uuids for <key> is: <value>.

Keys and values are random identifiers, so that nothing but the text tells which value belongs to which key. The values
of the other keys, those that nobody asks for among them, are the wrong answers.

Source: RULER, arXiv:2404.06654 (multi-query NIAH with identifiers for keys and values), with 4 queried keys as in
The Sparse Frontier, arXiv:2504.17768. There answers are written.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from typing import Any, ClassVar, final

from dynattn.lab.tasks.choosing import Asked, InTexts, Question, apart, ask, asked, width
from dynattn.lab.tasks.recall import Puzzle, bury, excerpt, fresh, spread

_STATEMENT = "One of the special magic uuids for {key} is: {value}."
_BEFORE = (
    "Some special magic uuids are hidden within the following text. Make sure to memorize them. I will quiz you about "
    "the uuids afterwards.\n"
)
_QUESTION = "\nWhat is the special magic uuid for the following key? One of the special magic uuids for {key} is:"
_DRAWN = 64  # values, of which those are taken that begin with different tokens


@final
@dataclass(frozen=True)
class Identifiers(InTexts):
    """The values of identifiers; one stands in each part of the text.

    Args:
        queried: how many keys are asked for.
        others: how many keys stand in the text besides.
    """

    queried: int = 4
    others: int = 4

    name: ClassVar[str] = "ruler-needles"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queried < 1 or self.others < 0 or self.queried + self.others < 2:
            raise ValueError(
                f"ruler-needles: queried must be at least 1, and 2 with the others: got {self.queried} and "
                f"{self.others}; the source queries 4"
            )

    def told(self) -> str:
        return f"{self.queried + self.others} identifiers with values hidden in it, {self.queried} of them asked for"

    def build(self, tokenizer: Any, index: int, draw: random.Random) -> Asked:
        texts = self.source()
        text = excerpt(texts, index, self.tokens)
        count = self.queried + self.others
        keys = fresh(lambda: _identifier(draw), " ".join(text), count)
        values = apart(tokenizer, fresh(lambda: _identifier(draw), " ".join([*text, *keys]), _DRAWN), count)
        queried = draw.sample(range(count), self.queried)  # asked for in another order than they stand in
        questions = [
            Question(_QUESTION.format(key=keys[i]), [values[i]], draw.sample(values[:i] + values[i + 1 :], count - 1))
            for i in queried
        ]
        slots = ask(tokenizer, questions)
        hidden = tuple(_STATEMENT.format(key=key, value=value) for key, value in zip(keys, values, strict=True))
        depths = spread(draw, count)
        body = bury(tokenizer, Puzzle(_BEFORE, hidden, depths), text, self.tokens, width(slots))
        label = f"{index + 1}: depths {', '.join(f'{depths[i]:.0%}' for i in queried)}"
        return asked(label, body, slots)


def _identifier(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))
