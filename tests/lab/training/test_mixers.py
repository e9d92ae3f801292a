"""Names of what a training puts in the place of dense attention."""

from __future__ import annotations

import pytest

from dynattn.lab.training.mixers import Pooling, mixer
from dynattn.methods import NM


def test_names() -> None:
    assert mixer("ponet-16") == Pooling(16)
    assert mixer(Pooling(2048).name) == Pooling(2048)
    assert mixer("nm-1-2") == NM(1, 2)


@pytest.mark.parametrize("name", ["ponet", "ponet-", "ponet-0", "ponet-02", "ponet-1.5", "ponet-9999999999", "nothing"])
def test_wrong_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"must be a method's short name: got '{name}'"):
        mixer(name)


def test_there_is_a_segment() -> None:
    with pytest.raises(ValueError, match="segments must be at least 1: got 0"):
        Pooling(0)
