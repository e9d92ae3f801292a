"""What linear layers leave out, in words."""

from __future__ import annotations

import pytest

pytest.importorskip("rich")
pytest.importorskip("pydantic")

from dynattn.lab.tune.linears.words import grid, sentence

METHODS = {"0.q": "teal-0.5", "0.k": "teal-0.5", "1.q": "teal-0.5", "1.down": "chess-0.5"}


def test_methods_are_counted_with_their_projections():
    assert sentence(METHODS) == "teal-0.5 in 3 linear layers, chess-0.5 in 1 linear layer"
    assert grid(METHODS).rows == [["teal-0.5", "3", "q 2, k 1"], ["chess-0.5", "1", "down 1"]]
