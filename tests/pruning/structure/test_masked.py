"""Removing by zeros: what is removed, and that it is a loan."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynattn.pruning.structure.elements import Element
from dynattn.pruning.structure.find import find, is_transposed
from dynattn.pruning.structure.masked import masked
from tests.pruning.structure.models import KINDS, SHARED, inputs, make, output


def _elements(*names: str) -> list[Element]:
    return [Element.from_name(name) for name in names]


def _by_inputs(module: Any) -> torch.Tensor:
    """The weight of a dense module, (in, out)."""
    return module.weight.data if is_transposed(module) else module.weight.data.T


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_the_identity_and_a_head_equals_zeroing_its_slice_of_the_output(kind):
    model, given, share = make(kind), inputs(kind), SHARED.get(kind, 1)
    dense = output(model, given)
    with masked(model, []):
        assert torch.equal(output(model, given), dense)
    with masked(model, [Element("heads", 1, share, 2 * share)]):
        actual = output(model, given)
    assert torch.equal(output(model, given), dense)  # the context has ended
    attention = find(model).layers[1].attention
    weight = _by_inputs(attention.output)
    weight[share * attention.head_dim : 2 * share * attention.head_dim] = 0
    torch.testing.assert_close(actual, output(model, given), rtol=1e-5, atol=1e-5)
    assert (actual - dense).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_removing_neurons_equals_zeroing_their_rows_of_the_output(kind):
    model, given = make(kind), inputs(kind)
    with masked(model, _elements("neurons-0-5-11")):
        actual = output(model, given)
    mlp = find(model).layers[0].mlp
    assert mlp is not None
    weight = _by_inputs(mlp.output)
    weight[5:11] = 0
    torch.testing.assert_close(actual, output(model, given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_without_blocks_gives_back_what_it_is_given(kind):
    model, given, seen = make(kind), inputs(kind), {}
    find(model).layers[1].module.register_forward_pre_hook(lambda _, args: seen.update(given=args[0]))
    find(model).layers[1].module.register_forward_hook(lambda _, args, out: seen.update(out=out))
    with masked(model, _elements("attention-1", "mlp-1")):
        output(model, given)
    out = seen["out"][0] if isinstance(seen["out"], tuple) else seen["out"]
    assert torch.equal(out, seen["given"])


def test_gradients_flow_through_the_rest():
    model, given = make("llama"), inputs("llama")
    with masked(model, _elements("attention-2", "heads-1-0-2")):
        model(**given).logits.square().mean().backward()
    attentions = [layer.self_attn for layer in model.model.layers]
    assert attentions[2].o_proj.weight.grad is None
    columns = attentions[1].o_proj.weight.grad.view(32, 4, 8).abs().sum((0, 2))
    assert (columns > 0).tolist() == [False, False, True, True]


def test_what_is_removed_may_not_even_be_finite():
    model, given = make("bert"), inputs("bert")
    model.encoder.layer[1].attention.self.value.weight.data[:8] = torch.nan
    with masked(model, _elements("heads-1-0-1")):
        assert torch.isfinite(output(model, given)).all()


def test_hooks_are_taken_off_also_by_an_error():
    model = make("gpt2")
    with pytest.raises(ZeroDivisionError), masked(model, _elements("mlp-0", "heads-1-0-1")):
        _ = 1 / 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
