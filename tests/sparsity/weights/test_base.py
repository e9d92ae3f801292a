"""Weights are 0 while a context is active, or for good; heads and embeddings have no part in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from dynattn.sparsity import DSnoT, Magnitude, NMWeights, RandomWeights, Wanda, calibrate
from dynattn.sparsity.linears import linears
from tests.pruning.structure.models import inputs, make, output

METHODS = (Magnitude(0.3), NMWeights(1, 4), RandomWeights(0.3), RandomWeights(0.3, layers="uniform"))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_share_of_the_weights_is_zero_and_then_all_are_back(kind, method):
    model, given = make(kind), inputs(kind)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    expected = output(model, given)
    with method.apply(model) as kept:
        for name, layer in linears(model).items():
            assert int((layer.weight != 0).sum()) == kept.counts[name]
            assert kept.sizes[name] == layer.weight.numel()
            changed = layer.weight != before[f"{name}.weight"]
            assert not layer.weight[changed].any()
        others = set(before) - {f"{name}.weight" for name in linears(model)}
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in others)
        assert not torch.allclose(output(model, given), expected)
    assert kept.share == pytest.approx(0.25 if isinstance(method, NMWeights) else 0.3, abs=1e-4)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight is parameters[name] for name, weight in model.named_parameters())
    assert torch.equal(output(model, given), expected)


def test_groups_run_along_the_inputs_also_where_the_weight_is_transposed():
    model = make("gpt2")
    with NMWeights(1, 4).apply(model):
        weight = linears(model)["transformer.h.0.mlp.c_fc"].weight  # (in, out)
        assert (weight.view(-1, 4, weight.shape[1]) != 0).sum(1).eq(1).all()


@pytest.mark.parametrize("method", [Magnitude(1.0), NMWeights(3, 3), RandomWeights(1.0)], ids=lambda one: one.name)
def test_keeping_everything_is_dense(method):
    model, given = make("llama"), inputs("llama")
    expected = output(model, given)
    with method.apply(model) as kept:
        assert kept.share == 1
        assert torch.equal(output(model, given), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_methods_that_look_at_inputs_are_given_them_by_layer(kind):
    model, given = make(kind), inputs(kind)
    statistics = calibrate(model, [given])
    method = Wanda(0.5)
    with method.apply(model, statistics) as kept:
        for name, layer in linears(model).items():
            turned = layer.weight.T if kind == "gpt2" else layer.weight
            assert (turned != 0).sum(1).eq(round(0.5 * turned.shape[1])).all(), name
    assert kept.share == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="Wanda: statistics must tell"), method.apply(model):
        pass
    NMWeights(2, 4, "wanda", DSnoT()).fix(model, statistics)
    assert all(int((layer.weight == 0).sum()) * 2 >= layer.weight.numel() for layer in linears(model).values())


def test_what_is_prepared_changes_back_and_forth():
    model, given = make("llama"), inputs("llama")
    dense = output(model, given)
    with Magnitude(0.3).apply(model) as once:
        sparse = output(model, given)
    switched = Magnitude(0.3).prepared(model)
    for _ in range(2):
        assert torch.equal(output(model, given), dense)
        with switched() as kept:
            assert torch.equal(output(model, given), sparse)
        assert kept == once
    with pytest.raises(ZeroDivisionError), switched():
        _ = 1 / 0
    assert torch.equal(output(model, given), dense)


def test_weights_come_back_after_an_error():
    model = make("llama")
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(ZeroDivisionError), Magnitude(0.1).apply(model):
        _ = 1 / 0
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_leaves_fixed_zeros_where_they_are(optimizer):
    model, given = make("llama"), inputs("llama")
    kept = Magnitude(0.3).fix(model)
    gone = {name: layer.weight == 0 for name, layer in linears(model).items()}
    steps = optimizer(model.parameters(), lr=0.1)
    for _ in range(3):
        steps.zero_grad()
        model(**given, labels=given["input_ids"]).loss.backward()
        steps.step()
    for name, layer in linears(model).items():
        assert torch.equal(layer.weight == 0, gone[name])
    assert kept.share == pytest.approx(0.3, abs=1e-3)


def test_frozen_weights_are_fixed_as_well_and_stay_so_when_they_are_trained():
    model, given = make("llama"), inputs("llama")
    model.requires_grad_(False)
    Magnitude(0.3).fix(model)
    assert not any(weight.requires_grad for weight in model.parameters())
    model.requires_grad_(True)
    model(**given, labels=given["input_ids"]).loss.backward()
    for layer in linears(model).values():
        assert layer.weight.grad is not None
        assert not layer.weight.grad[layer.weight == 0].any()


def test_heads_and_poolers_have_no_part():
    assert not any("lm_head" in name for name in linears(make("llama")))
    names = list(linears(make("bert")))
    assert len(names) == 18
    assert not any("pooler" in name for name in names)


def test_a_module_around_a_model_has_the_layers_of_the_model_alone():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.top = make("llama"), nn.Linear(32, 3)

    tagger = Tagger()
    assert list(linears(tagger)) == [f"model.{name}" for name in linears(tagger.model)]


def test_a_plain_module_has_its_linear_layers():
    parts = {"layer": nn.Linear(3, 4), "classifier": nn.Sequential(nn.Linear(4, 2)), "head": nn.Linear(4, 2)}
    assert list(linears(nn.ModuleDict(parts))) == ["layer"]
    assert list(linears(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))) == ["0", "2"]
    with pytest.raises(ValueError, match="must have plain linear layers"):
        linears(nn.ReLU())
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        linears("llama")  # pyright: ignore[reportArgumentType]
