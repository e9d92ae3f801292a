"""Elements by name, and what they leave."""

from __future__ import annotations

import pytest
import torch

from dynattn.pruning.structure.elements import Element, left
from dynattn.pruning.structure.find import find
from tests.pruning.structure.models import HEADS, LAYERS, NEURONS, make


@pytest.mark.parametrize("name", ["attention-0", "mlp-11", "heads-3-0-2", "neurons-0-16-48"])
def test_names_come_back(name):
    assert Element.from_name(name).name == name


@pytest.mark.parametrize(
    "name", ["attention", "mlp-1-0-3", "heads-1", "heads-1-3-3", "norm-1", "neurons-0-4-2", "mlp--1"]
)
def test_wrong_names_are_refused(name):
    with pytest.raises(ValueError, match="Element: "):
        Element.from_name(name)


def test_wrong_fields_are_refused():
    for fields in (("attention", -1), ("layer", 0), ("heads", 0, 2, 1), ("mlp", 0, 0, 3)):
        with pytest.raises(ValueError, match="Element: "):
            Element(*fields)  # pyright: ignore[reportArgumentType]


def test_elements_may_overlap():
    structure = find(make("llama"))
    names = ("heads-1-0-2", "heads-1-0-2", "neurons-1-3-8", "neurons-1-5-10", "mlp-2")
    parts = left(structure, [Element.from_name(name) for name in names])
    assert len(parts) == LAYERS
    assert parts[0].heads.all()
    assert parts[1].heads.tolist() == [False, False, True, True]
    assert parts[1].kv_heads.tolist() == [False, True]
    neurons = parts[1].neurons
    assert neurons is not None
    assert (~neurons).nonzero().flatten().tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert [part.mlp for part in parts] == [True, True, False]
    assert torch.stack([part.heads for part in parts]).sum() == LAYERS * HEADS - 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"mlp-{LAYERS}", "one of the model's 3 layers"),
        (f"heads-0-0-{HEADS + 2}", "of the 4 heads"),
        (f"neurons-0-0-{NEURONS + 1}", "of the 48 neurons"),
        ("heads-0-0-1", "heads that share a key head must go together"),
        ("heads-0-1-3", "heads that share a key head must go together"),
    ],
)
def test_what_a_model_does_not_have_is_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        left(find(make("llama")), [Element.from_name(name)])


def test_neurons_of_an_mlp_that_cannot_be_cut_are_refused():
    model = make("llama")
    model.model.layers[1].mlp.more = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="must be of an MLP of plain linear layers"):
        left(find(model), [Element("mlp", 1)])
