"""Which linear layers are given one method."""

from __future__ import annotations

import pytest
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("rich")

from dynattn.lab.tune.linears.units import of_kinds, units
from tests.pruning.structure.models import make


def test_layers_that_read_the_same_are_one_unit():
    found = units(make("llama"))
    assert [(unit.kind, unit.sites) for unit in found if unit.layer == 1] == [
        ("q", ("1.q", "1.k", "1.v")), ("o", ("1.o",)), ("gate", ("1.gate", "1.up")), ("down", ("1.down",)),
    ]  # fmt: skip
    assert {unit.kind for unit in units(make("gpt2"))} == {"qkv", "o", "in", "out"}
    assert of_kinds(found, "m", "o", "out") == {f"{layer}.o": "m" for layer in range(3)}
    assert len(of_kinds(found, "m")) == 3 * 7


def test_a_model_whose_layers_cannot_be_named_has_none():
    assert units(nn.Linear(2, 2)) == []
