"""The curve of score against sparsity, and its knee."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.figures import Interval
from dynattn.lab.prune.essential import Thinned, knee, thinned
from dynattn.lab.prune.run import examine
from dynattn.lab.prune.settings import Settings


def _point(sparsity: float, mean: float) -> Thinned:
    share = Interval(mean=mean, low=None, high=None)
    other = Interval(mean=0.0, low=None, high=None)  # the held-out items have no say
    return Thinned(name=f"magnitude-{1 - sparsity}", sparsity=sparsity, validation=share, held_out=other)


def test_the_knee_is_the_sparsest_within_one_percent():
    curve = [_point(0.1, 1.01), _point(0.5, 0.99), _point(0.3, 0.985), _point(0.7, 0.989)]
    found = knee(curve)
    assert found is not None
    assert found.sparsity == 0.5
    assert knee([_point(0.1, 0.9)]) is None


def test_sparsity_is_what_was_set_to_zero(tiny_decoder: Path, many_texts: Path):
    exam = examine(Settings(model=str(tiny_decoder), text=many_texts, items=6, tokens=128))
    whole = thinned(exam, "magnitude-1.0")
    assert (whole.sparsity, whole.validation.mean, whole.held_out.mean) == (0, 1, 1)
    half = thinned(exam, "randomweight-0.5")
    assert half.sparsity == pytest.approx(0.5, abs=1e-4)
    assert half.validation.mean != 1
    assert half.held_out.mean != 1
    assert thinned(exam, "magnitude-1.0") == whole  # the weights are back
    with pytest.raises(ValueError, match="thinned: name must be of a method that sets weights to 0: got 'wina-0"):
        thinned(exam, "wina-0.5")
