"""The layer that harms least goes first, seen on scores that are known."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.prune.depth import by_chance, least_harmful, whole
from tests.pruning.structure.models import make


@dataclass
class Known:
    """An exam in which each layer costs a known amount; the last item is held out, and says the opposite."""

    higher: bool

    def __post_init__(self) -> None:
        self.pretrained = SimpleNamespace(model=make("bert"))
        self.task, self.validation, self.asked = SimpleNamespace(higher_is_better=self.higher), 2, 0

    def scores(self, state: Any) -> np.ndarray:
        self.asked += 1
        cost = sum({0: 0.3, 1: 0.1, 2: 0.2}[element.layer] for element in state.removed.elements)
        return np.array([-cost, -cost, cost]) * (1 if self.higher else -1)


@pytest.mark.parametrize("higher", [True, False])
def test_the_least_harmful_layer_goes_first(higher):
    exam, told = Known(higher), []
    assert least_harmful(cast(Any, exam), 2, told.append) == [1, 2] == told
    assert exam.asked == 3 + 2
    assert least_harmful(cast(Any, exam), 2, known=[0]) == [0, 1]
    assert exam.asked == 3 + 2 + 2


def test_whole_layers_and_draws():
    exam = cast(Any, Known(True))
    assert whole(exam, [2]).names == ("attention-2", "mlp-2")
    assert {tuple(sorted(by_chance(exam, 2, seed))) for seed in range(9)} == {(0, 1), (0, 2), (1, 2)}
    assert by_chance(exam, 2, 1) == by_chance(exam, 2, 1)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="layers to remove must be from 0 to 2"):
            by_chance(exam, wrong, 0)
