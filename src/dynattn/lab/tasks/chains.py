"""Variable tracking with several chains: which variables hold the value of one of them?

    VAR QWERT = 12345.   …   VAR ZUIOP = VAR QWERT.   …   VAR ASDFG = VAR ZUIOP.

Every chain has a value of its own, and the names of the other chains are the wrong answers, so that it does not suffice
to find names. An example of one chain comes first.

Source: RULER, arXiv:2404.06654 (names of 5 capitals, values of 5 digits), with 8 chains of 4 hops as in The Sparse
Frontier, arXiv:2504.17768. There answers are written.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import Any, ClassVar, final

from dynattn.lab.tasks.choosing import Asked, InTexts, Question, apart, ask, asked, width
from dynattn.lab.tasks.recall import Puzzle, bury, excerpt, fresh, spread
from dynattn.lab.tasks.variables import BEFORE, LETTERS, QUESTION, example, said

_DRAWN = 4  # times the names of a chain, of which those are taken that begin with different tokens


@final
@dataclass(frozen=True)
class Chains(InTexts):
    """The names that hold a value, of several chains.

    Args:
        chains: how many.
        hops: assignments from a name to the next; a chain has one name more.
    """

    chains: int = 8
    hops: int = 4

    name: ClassVar[str] = "ruler-variables"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chains < 2 or self.hops < 1:
            raise ValueError(
                f"ruler-variables: chains must be at least 2 and hops at least 1: got {self.chains}, {self.hops}; one "
                "chain is the task variables"
            )

    def told(self) -> str:
        return f"{self.chains} chains of {self.hops + 1} variables hidden in it"

    def build(self, tokenizer: Any, index: int, draw: random.Random) -> Asked:
        text = excerpt(self.source(), index, self.tokens)
        before, joined, count = example(draw, self.hops) + BEFORE, " ".join(text), self.hops + 1
        names = fresh(lambda: _name(draw), before + joined, count * (self.chains + _DRAWN))
        right = apart(tokenizer, names, count)
        rest = [name for name in names if name not in right]
        chains = [right, *(rest[i * count : (i + 1) * count] for i in range(self.chains - 1))]
        values = fresh(lambda: str(draw.randrange(10000, 100000)), before + joined, self.chains)
        question = Question(
            QUESTION.format(value=values[0], count=count), right, [name for chain in chains[1:] for name in chain]
        )
        slots = ask(tokenizer, [question])
        statements = _woven(draw, [said(names, value) for names, value in zip(chains, values, strict=True)])
        depths = spread(draw, len(statements))
        body = bury(tokenizer, Puzzle(before, statements, depths), text, self.tokens, width(slots))
        return asked(f"{index + 1}: {values[0]}", body, slots)


def _name(draw: random.Random) -> str:
    return "".join(draw.choices(string.ascii_uppercase, k=LETTERS))


def _woven(draw: random.Random, chains: list[list[str]]) -> tuple[str, ...]:
    """The statements of all chains mixed, those of each in their order."""
    turns = [number for number, chain in enumerate(chains) for _ in chain]
    draw.shuffle(turns)
    left = [iter(chain) for chain in chains]
    return tuple(next(left[number]) for number in turns)
