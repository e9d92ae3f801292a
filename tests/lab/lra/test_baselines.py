"""The floors are what they say."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("accelerate")

from dynattn.lab.lra.baselines import baselines
from dynattn.lab.lra.data import Data, Split


def test_floors_are_what_they_say():
    """Class by the first token for three quarters, so that floor is known; a bag sees nothing of the order."""
    draw = np.random.default_rng(0)
    first, label = draw.integers(1, 3, 4000), draw.integers(0, 2, 4000)
    label = np.where(draw.random(4000) < 0.5, first - 1, label)
    tokens = [np.array([a, 3 - a, 3], np.uint16) for a in first]  # every bag holds 1, 2 and 3
    data = Data(Split(tokens[:3000], label[:3000]), Split(tokens[3000:], label[3000:]), 4, 2, 3, False, "")
    found = baselines(data)
    assert found.chance == 0.5
    assert found.first_token == pytest.approx(0.75, abs=0.04)
    assert found.bag == found.majority == pytest.approx(0.5, abs=0.05)
