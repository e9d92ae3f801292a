"""Names of combinations are cut at the signs outside of brackets, and each part must be known by its own name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dynattn import NM, TopK
from dynattn.methods import PairMethod, Rows
from dynattn.methods.grammar import inside, named, part, split


@pytest.mark.parametrize(
    ("name", "sign", "parts"),
    [
        ("a", "+", ["a"]),
        ("a+b+c", "+", ["a", "b", "c"]),
        ("(a+b)&c", "+", ["(a+b)&c"]),
        ("(a+b)&c", "&", ["(a+b)", "c"]),
        ("perhead(2*a_b)+c", "_", ["perhead(2*a_b)+c"]),
        ("((a+b)+c)+d", "+", ["((a+b)+c)", "d"]),
        ("a+", "+", ["a", ""]),
    ],
)
def test_split(name: str, sign: str, parts: list[str]) -> None:
    assert split(name, sign) == parts


@pytest.mark.parametrize(
    ("name", "word", "inner"),
    [
        ("perhead(a_b)", "perhead", "a_b"),
        ("(a+b)", "", "a+b"),
        ("perhead(a)+(b)", "perhead", None),
        ("(a)&(b)", "", None),
        ("perlayer(a)", "perhead", None),
        ("perhead", "perhead", None),
        ("a", "", None),
    ],
)
def test_inside(name: str, word: str, inner: str | None) -> None:
    assert inside(name, word) == inner


def test_a_part_may_stand_in_brackets() -> None:
    assert part("nm-1-2") == part("(nm-1-2)") == NM(1, 2)
    with pytest.raises(ValueError, match="got 'nothing'"):
        part("(nothing)")


@dataclass(frozen=True)
class Forgetful(PairMethod):
    """Its name leaves a field out, so that it stands for another method."""

    count: int

    @property
    def name(self) -> str:
        return "topk-3"

    @classmethod
    def from_name(cls, name: str) -> Forgetful | None:
        return None

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        return torch.ones_like(scores, dtype=torch.bool)


def test_a_part_that_its_name_does_not_stand_for_is_refused() -> None:
    assert named("Union", TopK(k=3)) == TopK(k=3)
    assert named("Union", NM(4, 4)).keeps_everything
    with pytest.raises(ValueError, match=r"Union: parse\(part.name\) must be the part: .* of Forgetful hold all"):
        named("Union", Forgetful(3))
