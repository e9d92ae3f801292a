"""Names of all methods, and of one's own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from dynattn.pruning import LTP, Course, Decision, FirstTokens, Pruning, RandomTokens, SpAtten, Start, parse, register
from dynattn.pruning.registry import _known
from tests.pruning.models import inputs, make


@dataclass(frozen=True)
class Newest(Pruning):
    """Keep the last tokens: as a user would write a method."""

    count: int

    @property
    def name(self) -> str:
        return f"newest-{self.count}"

    @classmethod
    def from_name(cls, name):
        return cls(int(name.removeprefix("newest-"))) if name.startswith("newest-") else None

    def course(self, start: Start) -> Course:
        count, length = self.count, start.alive.sum(1, keepdim=True)

        class Last(Course):
            def after(self, seen):
                return Decision(seen.position >= length - count)

        return Last()


def test_a_method_of_ones_own():
    with pytest.raises(ValueError, match=r"'newest-4'.*register\(\)"):
        parse("newest-4")
    before = list(_known.known)
    try:
        assert register(Newest) is Newest
        register(Newest)
        assert len(_known.known) == len(before) + 1
        method = parse("newest-4")
    finally:
        _known.known[:] = before
    assert method == Newest(4)
    model = make("bert")
    with torch.no_grad(), method.apply(model) as trace:
        model(**inputs("bert"))
    assert trace.last.tokens[1].tolist() == [5, 5, 5]  # and the class token
    with pytest.raises(TypeError, match="must be a subclass"):
        register(int)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "method", [SpAtten(0.5, heads=0.75), LTP(0.002), RandomTokens(0.3), RandomTokens(0.3, seed=4), FirstTokens(0.25)]
)
def test_names_round_trip(method):
    assert parse(method.name) == method


@pytest.mark.parametrize(
    "name", ["random-tokens-", "first-tokens-0.5-r3", "spatten-0.5-q8", "ltp-", "ltp-0.1-", "nm-1-2"]
)
def test_wrong_names(name):
    with pytest.raises(ValueError, match=f"must be a pruning method's short name: got '{name}'"):
        parse(name)
