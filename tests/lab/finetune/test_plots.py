"""Every method has its curves."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")


from dynattn.lab.finetune.plots import curves
from dynattn.lab.page import COLORS
from dynattn.lab.training.results import Study
from dynattn.lab.words import label


def test_every_method_has_its_curves_when_there_are_more_than_colours(found: Study):
    names = [f"nm-{n}-16" for n in range(1, len(COLORS) + 2)]
    arms = [found.dense.model_copy(update={"method": name}) for name in ("sdpa", *names)]
    drawn = curves(found.model_copy(update={"methods": ["sdpa", *names], "arms": arms}))
    assert all(label(name) in drawn for name in names)
