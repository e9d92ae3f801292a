"""Which of many cases always run; the others wait for ``-m sweep``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

_NAMES = {False: "full", True: "causal"}


def half(*dimensions: Sequence) -> list:
    """The cases of three or more independent dimensions, of which every other one waits for ``-m sweep``.

    Two choices of different dimensions meet in a case that is left, as a third dimension makes their sum even.
    """
    return [
        pytest.param(
            *(choices[place] for choices, place in zip(dimensions, places, strict=True)),
            marks=[pytest.mark.sweep] if sum(places) % 2 else [],
            id="-".join(_word(choices[place]) for choices, place in zip(dimensions, places, strict=True)),
        )
        for places in itertools.product(*(range(len(choices)) for choices in dimensions))
    ]


def part(cases: Iterable, each: int, ids: Callable[[Any], str] | None = None) -> list:
    """One case in ``each`` of cases that are much alike; the others wait for ``-m sweep``."""
    return [
        pytest.param(
            *(case if type(case) is tuple else (case,)),
            marks=[pytest.mark.sweep] if number % each else [],
            id=None if ids is None else ids(case),
        )
        for number, case in enumerate(cases)
    ]


def _word(choice: object) -> str:
    if isinstance(choice, bool):
        return _NAMES[choice]
    return "x".join(map(str, choice)) if isinstance(choice, tuple) else str(getattr(choice, "name", choice))
