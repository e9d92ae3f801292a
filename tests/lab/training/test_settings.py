"""What all trainings refuse, in the name of their command."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from dynattn.lab.training.mixers import mixer
from dynattn.lab.training.settings import check


def settings(**fields: object) -> SimpleNamespace:
    return SimpleNamespace(**{"methods": ("nm-1-2",), "learning_rate": None, "steps": None} | fields)


@pytest.mark.parametrize("rate", [0.0, -1e-3, math.nan, math.inf])
def test_a_learning_rate_is_a_positive_number(rate: float) -> None:
    with pytest.raises(ValueError, match=f"lra: learning_rate must be positive: got {rate}; leave it out"):
        check("lra", settings(learning_rate=rate), ())


def test_numbers_are_none_or_at_least_one() -> None:
    check("lra", settings(steps=1, learning_rate=1e-3), ("steps",))
    check("lra", settings(), ("steps",))
    with pytest.raises(ValueError, match="finetune: steps must be at least 1: got 0; leave it out for the default"):
        check("finetune", settings(steps=0), ("steps",))


def test_methods_must_be_known_to_the_command() -> None:
    check("lra", settings(methods=("nm-1-2", "ponet-4")), (), mixer)
    with pytest.raises(ValueError, match="got 'ponet-4'"):  # pretrained models have no such layers
        check("finetune", settings(methods=("nm-1-2", "ponet-4")), ())
    with pytest.raises(ValueError, match="got 'nothing'"):
        check("lra", settings(methods=("nm-1-2", "nothing")), ())
