"""Contexts that a model stays in: entered in turn, left the other way round, all or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from torch import nn

from dynattn.integrations.transformers import lasting


@pytest.fixture
def said() -> list[str]:
    """What contexts say of themselves."""
    return []


@pytest.fixture
def noted(said: list[str]) -> Callable[[str], AbstractContextManager[None]]:
    """A context of a name."""

    @contextmanager
    def made(name: str) -> Iterator[None]:
        said.append(f"in {name}")
        try:
            yield
        finally:
            said.append(f"out {name}")

    return made


def test_they_last_until_they_are_left(noted: Callable[[str], AbstractContextManager[None]], said: list[str]) -> None:
    model = nn.Linear(2, 2)
    lasting.enter(model, [noted("a"), noted("b")])
    assert said == ["in a", "in b"]
    lasting.leave(model)
    assert said == ["in a", "in b", "out b", "out a"]
    lasting.leave(model)
    assert len(said) == 4


def test_new_ones_take_the_place_of_others(
    noted: Callable[[str], AbstractContextManager[None]], said: list[str]
) -> None:
    model = nn.Linear(2, 2)
    lasting.enter(model, [noted("a")])
    lasting.enter(model, [noted("b")])
    assert said == ["in a", "out a", "in b"]
    lasting.enter(model, [])
    assert said[3:] == ["out b"]
    assert vars(model).keys() == vars(nn.Linear(2, 2)).keys()


def test_where_one_cannot_be_entered_none_is(
    noted: Callable[[str], AbstractContextManager[None]], said: list[str]
) -> None:
    @contextmanager
    def refused() -> Iterator[None]:
        raise ValueError("not this model")
        yield

    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="not this model"):
        lasting.enter(model, [noted("a"), refused()])
    assert vars(model).keys() == vars(nn.Linear(2, 2)).keys()
    assert said == ["in a", "out a"]
