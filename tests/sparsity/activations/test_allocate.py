"""Projections leave out what harms a layer least, and together a target."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.sparsity import TEAL, WINA, allocate
from dynattn.sparsity.sites import places
from tests.pruning.structure.models import inputs, make, output


def _spared(model, setting, given) -> dict[str, float]:
    """The share of each projection's inputs that are dropped in the dense model."""
    shares = {}
    for place in places(model):
        seen = []
        handle = place.module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].abs()))
        output(model, given)
        handle.remove()
        shares[place.projection] = float((seen[0] <= setting.thresholds[place.name][0]).float().mean())
    return shares


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_layer_leaves_out_the_target(kind):
    model = make(kind, num_hidden_layers=1)
    given = inputs(kind) | ({"use_cache": False} if kind == "llama" else {})
    dense = output(model, given)
    setting = allocate(TEAL(0.9), model, [given])
    shares = _spared(model, setting, given)
    weights = {one.projection: one.module.weight.numel() for one in places(model)}
    together = sum(shares[name] * size for name, size in weights.items())
    assert together == pytest.approx(0.1 * sum(weights.values()), rel=0.02)
    assert max(shares.values()) - min(shares.values()) > 0.04  # not all alike
    assert torch.equal(output(model, given), dense)
    with setting.apply(model):
        assert not torch.allclose(output(model, given), dense)


def test_what_does_no_harm_is_left_out_first():
    model, given = make("llama", num_hidden_layers=1), inputs("llama") | {"use_cache": False}
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    found = allocate(TEAL(0.7), model, [given]).thresholds  # three fifths of a layer's weights are the MLP's
    assert all(found[f"0.{name}"] == (-1.0,) for name in "qkvo")
    assert found["0.gate"] > (0.0,)


def test_keeping_everything_leaves_nothing_out():
    model, given = make("bert", num_hidden_layers=1), inputs("bert")
    assert set(allocate(TEAL(1.0), model, [given]).thresholds.values()) == {(-1.0,)}


def test_refusals():
    model, given = make("llama"), inputs("llama")
    with pytest.raises(TypeError, match="allocate: method must be a TEAL"):
        allocate(WINA(0.5), model, [given])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="inputs must come without a cache"):
        allocate(TEAL(0.5), model, [given])
    with pytest.raises(ValueError, match="there must be inputs"):
        allocate(TEAL(0.5), model, [])
    assert not any(module._forward_pre_hooks for module in model.modules())
