"""Variable tracking: a chain of assignments scattered over a long text, to be followed from its value to every name.

    VAR QWERT = 12345.   …   VAR ZUIOP = VAR QWERT.   …   VAR ASDFG = VAR ZUIOP.

The question names the value, the answer all variables that hold it. Each name is reached from the one before it:
attention that loses one link loses the rest. An example comes first, as the source has it.

Source: RULER, arXiv:2404.06654, section 3 (one chain of 4 hops, names of 5 capitals, values of 5 digits).
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from dynattn.lab.tasks.recall import Item, Puzzle, Recall, excerpt, fresh, hide, spread
from dynattn.lab.tasks.texts import Text

BEFORE = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
QUESTION = (
    "\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to the "
    "chain(s) of variable assignment in the text above, {count} variables are assigned the value {value}, they are:"
)
_NOISE = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
LETTERS, _LETTERS_IN_EXAMPLE = 5, 3  # so that the example's names are none of the question's


@final
@dataclass(frozen=True)
class Variables(Recall):
    """The names that hold a value, in the order of the chain.

    Args:
        hops: assignments from a name to the next; there is one name more.
    """

    hops: int = 4

    name: ClassVar[str] = "variables"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hops < 1:
            raise ValueError(f"variables: hops must be at least 1: got {self.hops}")

    def asked(self) -> str:
        return f"a chain of {self.hops + 1} variables hidden in it"

    def build(self, tokenizer: Any, texts: Sequence[Text], index: int, draw: random.Random) -> Item:
        text = excerpt(texts, index, self.tokens)
        shown = example(draw, self.hops)
        names, value = _chain(draw, " ".join(text), self.hops, LETTERS)
        depths = spread(draw, self.hops + 1)
        puzzle = Puzzle(
            before=shown + BEFORE,
            hidden=tuple(said(names, value)),
            depths=depths,
            question=QUESTION.format(value=value, count=len(names)),
            answer=" " + " ".join(names),
        )
        label = f"{index + 1}: depths {', '.join(f'{depth:.0%}' for depth in depths)}"
        guess = (self.hops + 1) * LETTERS * math.log(len(string.ascii_uppercase))
        return Item(label, *hide(tokenizer, puzzle, text, self.tokens), guess)


def _chain(draw: random.Random, text: str, hops: int, letters: int) -> tuple[list[str], str]:
    """Names and value, none of which stands in ``text``."""
    names = fresh(lambda: "".join(draw.choices(string.ascii_uppercase, k=letters)), text, hops + 1)
    (value,) = fresh(lambda: str(draw.randrange(10000, 100000)), text, 1)
    return names, value


def said(names: Sequence[str], value: str) -> list[str]:
    """A chain's assignments, each from the name before."""
    sources = [value, *(f"VAR {name}" for name in names[:-1])]
    return [f"VAR {name} = {source}." for name, source in zip(names, sources, strict=True)]


def example(draw: random.Random, hops: int) -> str:
    """A short text with its chain, question and answer."""
    names, value = _chain(draw, "", hops, _LETTERS_IN_EXAMPLE)
    text = "".join(f" {statement}{_NOISE}" for statement in said(names, value))
    return f"{BEFORE}{text}{QUESTION.format(value=value, count=hops + 1)} {' '.join(names)}\n\n"
