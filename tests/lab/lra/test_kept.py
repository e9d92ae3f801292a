"""Kept mass of a trained encoder leaves padding out."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("accelerate")

from dynattn.lab.lra.experiment import Arena
from dynattn.lab.lra.kept import kept
from tests.lab.lra.toy import recipe, toy


def test_kept_mass_leaves_padding_out(tmp_path, monkeypatch):
    """A batch's short sequence must weigh as alone: the mean over tokens, whatever stands behind them."""
    arena = Arena("toy", toy(), recipe())
    torch.manual_seed(0)
    for method in ("sdpa", "nm-1-4"):
        arena.save(arena.model(method), tmp_path / f"{method}-seed0" / "model")
    found = kept(arena, ["sdpa", "nm-1-4"], [0], tmp_path)[0].trained_with_it
    original = arena.held_out
    monkeypatch.setattr(arena, "held_out", lambda indices: _padded(original(indices)))
    assert kept(arena, ["nm-1-4"], [0], tmp_path)[0].trained_with_it == pytest.approx(found, rel=1e-5)


def _padded(batch):
    more = 24 - batch["input_ids"].shape[1]  # as many columns as the model has positions
    return batch | {name: torch.nn.functional.pad(batch[name], (0, more)) for name in ("input_ids", "attention_mask")}
