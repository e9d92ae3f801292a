"""Random draws remove exactly as much, and the best of them is the best on validation."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.prune.draws import Counts, Draw, counts, draw, random_search
from dynattn.lab.prune.run import examine
from dynattn.lab.prune.settings import Settings
from dynattn.pruning import Removed
from tests.pruning.structure.models import make


def test_a_draw_removes_exactly_so_many_and_follows_its_seed():
    model = make("llama")
    removed = draw(model, Counts(2, 5), 3)
    assert counts(model, removed) == (2, 5)
    assert removed == draw(model, Counts(2, 5), 3)
    assert len({draw(model, Counts(2, 5), seed) for seed in range(3)}) > 1
    assert counts(model, draw(model, Counts(6, 24), 0)) == (6, 24)
    with pytest.raises(ValueError, match="heads must be from 0 to the 6 groups"):
        draw(model, Counts(7, 0), 0)


def test_blocks_count_as_all_their_groups():
    assert counts(make("llama"), Removed.of("attention-0", "heads-0-0-2", "heads-1-0-2", "mlp-2")) == (3, 8)


def test_the_best_draw_is_that_of_validation(tiny_decoder: Path, many_texts: Path):
    exam = examine(Settings(model=str(tiny_decoder), text=many_texts, items=6, tokens=128))
    told: list[Draw] = []
    best = random_search(exam, Counts(1, 4), 3, told.append)
    assert [one.seed for one in told] == [0, 1, 2]
    assert best.validation == min(one.validation for one in told)  # of a likelihood, lower is better
    with pytest.raises(ValueError, match="draws must be at least 1"):
        random_search(exam, Counts(1, 4), 0)
