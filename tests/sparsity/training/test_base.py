"""A training at work: what it leaves behind, what it counts, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from dynattn.sparsity.linears import linears
from dynattn.sparsity.training import BDWP, SRSTE, Progressive
from tests.pruning.structure.models import inputs, make, output
from tests.sparsity.training.plain import batches, kept_by_loops, learn, network


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [("llama", SRSTE(2, 4)), ("gpt2", SRSTE(2, 4)), ("bert", Progressive(1, 4, rate=0.5)), ("gpt2", BDWP(2, 8))],
)
def test_a_model_learns_and_has_nm_weights_in_the_end(kind, recipe):
    model, given = make(kind), inputs(kind)
    names, before = list(model.state_dict()), {name: x.clone() for name, x in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with recipe.train(model, optimizer, steps=3) as training:
        for _ in range(3):
            optimizer.zero_grad()
            out = model(**given)
            (out.logits if "logits" in out else out.last_hidden_state).square().mean().backward()
            optimizer.step()
        masked = output(model, given)
    assert list(model.state_dict()) == names
    assert not any("forward" in vars(layer) for layer in linears(model).values())
    assert all(torch.equal(recipe.kept.masks({"a": _turned(kind, x)})["a"], training.kept[name])
               for name, x in linears(model).items())  # fmt: skip
    assert not torch.allclose(output(model, given), masked)  # dense again
    recipe.kept.fix(model)
    torch.testing.assert_close(output(model, given), masked, rtol=1e-4, atol=1e-5)
    for layer in linears(model).values():
        weight = _turned(kind, layer)
        assert (weight[:, : 32 // recipe.m * recipe.m].reshape(-1, recipe.m) != 0).sum(1).le(recipe.n).all()
    assert all((model.state_dict()[f"{name}.weight"] != before[f"{name}.weight"]).any() for name in linears(model))


def _turned(kind, layer):
    weight = layer.weight.detach()
    return weight.T if kind == "gpt2" else weight


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_forwards_multiply_by_the_weights_that_count(kind):
    model, given = make(kind), inputs(kind)
    dense = output(model, given)
    with SRSTE(2, 4).kept.apply(model):
        expected = output(model, given)
    with SRSTE(2, 4).train(model) as training:
        torch.testing.assert_close(output(model, given), expected, rtol=1e-4, atol=1e-4)
        with torch.inference_mode():
            torch.testing.assert_close(output(model, given), expected, rtol=1e-4, atol=1e-4)
    assert training.changed == []
    assert torch.equal(output(model, given), dense)


def test_entries_of_masks_that_change_are_counted():
    model, data = network(), batches(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    expected, masks = [], [kept_by_loops(layer.weight, 2, 4) for layer in (model[0], model[2])]
    with SRSTE(2, 4).train(model, optimizer) as training:
        for batch in data:
            learn(model, optimizer, [batch])
            now = [kept_by_loops(layer.weight, 2, 4) for layer in (model[0], model[2])]
            expected.append(sum(int((a != b).sum()) for a, b in zip(masks, now, strict=True)))
            masks = now
        assert all(torch.equal(a, b) for a, b in zip(training.kept.values(), masks, strict=True))
    assert training.changed == expected
    assert sum(expected) > 0
    assert training.step == 5
    learn(model, optimizer, data)
    assert training.step == 5  # the optimizer is free again


def test_weights_that_are_loaded_meanwhile_have_masks_of_their_own():
    model, other = network(), network()
    with torch.no_grad():
        other[0].weight.copy_(other[0].weight.flip(1))
    x = batches(1)[0][0]
    with SRSTE(1, 4).train(model):
        model(x)
        model.load_state_dict(other.state_dict())
        found = model(x)
    with SRSTE(1, 4).kept.apply(other):
        torch.testing.assert_close(found, other(x))


def test_a_training_that_goes_on_is_at_its_step():
    model, recipe = network(), Progressive(1, 4, rate=0.5, dense=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recipe.train(model, steps=10) as training:
        training.attach(optimizer, 6)
        assert training.stage == recipe.stage(6, 10)
        training.attach(optimizer, 7)  # once more, and it still counts once
        learn(model, optimizer, batches(1))
        assert training.step == 8


def test_what_cannot_be_is_refused():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters())
    with SRSTE(2, 4).train(model, optimizer):
        with pytest.raises(ValueError, match="train: the model's linear layers must be its own"), \
                BDWP(2, 4).train(model):  # fmt: skip
            pass
        with pytest.raises(RuntimeError, match="train: the optimizer's step must take no closure"):
            optimizer.step(lambda: 0.0)
    with pytest.raises(ValueError, match="must have plain linear layers"), SRSTE(2, 4).train(nn.ReLU()):
        pass
    with pytest.raises(ValueError, match="steps must say"), Progressive(1, 4).train(model):
        pass
    assert "forward" not in vars(model[0])
