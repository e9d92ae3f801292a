"""Kept mass is within its bounds, density is measured, and a model that does not call dynattn is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")


from dynattn.lab.compare import Comparison
from dynattn.lab.compare.kept import kept
from dynattn.lab.models import load
from dynattn.methods import NM


def test_kept_mass_is_within_its_bounds_and_density_is_measured(found: Comparison):
    assert [entry.method for entry in found.kept] == ["nm-1-2", "nm-2-4-w8-s1"]
    for entry in found.kept:
        assert len(entry.mass) == 2
        assert all(len(layer) == 2 and all(0.5 <= value <= 1 for value in layer) for layer in entry.mass)
        assert 0.5 - 1e-6 <= entry.lowest <= min(min(layer) for layer in entry.mass)
    assert found.kept[0].density == pytest.approx(0.5)
    assert found.kept[1].density > 0.55


def test_kept_refuses_a_model_that_does_not_call_dynattn(tiny_encoder: Path):
    pretrained = load(str(tiny_encoder))
    with pytest.raises(ValueError, match="must call dynattn"):
        kept(pretrained, NM(1, 2), [{"input_ids": torch.ones(1, 8, dtype=torch.long)}])
