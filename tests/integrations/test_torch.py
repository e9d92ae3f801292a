"""Plain PyTorch's models by dynattn: dense is their own attention, and the model is as before afterwards."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from dynattn import NM, PerLayer
from dynattn.integrations import torch as dynattn_torch
from dynattn.integrations.transformers import observing
from dynattn.nn import MultiheadAttention

WIDTH, HEADS, LENGTH = 16, 4, 11
PADDING = torch.tensor([[False] * LENGTH, [False] * 6 + [True] * 5])


class Own(nn.Module):
    """A module that calls PyTorch's function, with any arguments, in whatever shape."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)


class ByHand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.transpose(-2, -1)).softmax(-1) @ x


def encoder(**options: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options.get("norm_first")).double().eval()


def state(model: nn.Module) -> list[tuple[str, type, dict[str, Any]]]:
    return [(name, type(module), dict(vars(module))) for name, module in model.named_modules()]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_an_encoder_attends_by_dynattn(norm_first: bool, grad: bool) -> None:
    """With padding, which its own fused path nests."""
    model = encoder(norm_first=norm_first)
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    before = state(model)
    with torch.set_grad_enabled(grad):
        expected, calls = model(x, src_key_padding_mask=PADDING), []
        with dynattn_torch.apply(model, "dense") as found, observing(calls.append):
            torch.testing.assert_close(model(x, src_key_padding_mask=PADDING)[~PADDING], expected[~PADDING])
        with dynattn_torch.apply(model, NM(1, 4)):
            assert not torch.allclose(model(x, src_key_padding_mask=PADDING)[~PADDING], expected[~PADDING])
        assert torch.equal(model(x, src_key_padding_mask=PADDING), expected)
    assert [part.name for part in found.taking_part] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert not found.own
    assert str(before) == str(state(model))


def test_a_decoder_and_a_whole_transformer() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(WIDTH, HEADS, 1, 2, 24, batch_first=True).double().eval()
    source, target = (torch.randn(2, length, WIDTH, dtype=torch.float64) for length in (LENGTH, 7))
    masks = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64), "tgt_is_causal": True,
        "src_key_padding_mask": torch.zeros(2, LENGTH).double().masked_fill(PADDING, -torch.inf),
        "memory_key_padding_mask": torch.zeros(2, LENGTH).double().masked_fill(PADDING, -torch.inf),
    }  # fmt: skip
    expected = model(source, target, **masks)
    with dynattn_torch.apply(model, "dense") as found:
        out = model(source, target, **masks)
    torch.testing.assert_close(out, expected)
    assert len(found.taking_part) == 5  # one of the encoder, two of each layer of the decoder
    gradients = (torch.autograd.grad(y.sin().sum(), list(model.parameters())) for y in (out, expected))
    torch.testing.assert_close(*gradients)


MASK = torch.linspace(-2, 2, 5 * 8).reshape(5, 8).double()
CALLS: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "four": (((2, 3, 5, 4), (2, 3, 8, 4), (2, 3, 8, 6)), {}),
    "two": (((5, 4), (8, 4), (8, 6)), {"attn_mask": MASK}),
    "three": (((3, 5, 4), (3, 8, 4), (3, 8, 4)), {"attn_mask": (MASK > 0).expand(3, 5, 8), "scale": 0.3}),
    "five": (((2, 3, 2, 5, 4), (2, 3, 2, 8, 4), (2, 3, 2, 8, 4)), {"attn_mask": MASK.expand(3, 1, 5, 8)}),
    "five, one row": (((2, 3, 2, 5, 4), (2, 3, 2, 8, 4), (2, 3, 2, 8, 4)), {"attn_mask": MASK[:1] > -1}),
    "keys shared": (((2, 3, 5, 4), (1, 1, 8, 4), (2, 1, 8, 4)), {}),
    "queries shared": (((1, 1, 5, 4), (2, 3, 8, 4), (2, 3, 8, 4)), {"attn_mask": MASK.expand(2, 1, 5, 8)}),
    "grouped": (((2, 6, 5, 4), (2, 2, 8, 4), (2, 2, 8, 4)), {"enable_gqa": True}),
    "causal": (((2, 3, 8, 4), (2, 3, 8, 4), (2, 3, 8, 4)), {"is_causal": True}),
    "causal, more keys": (((2, 3, 5, 4), (2, 3, 8, 4), (2, 3, 8, 4)), {"is_causal": True}),
    "causal, more queries": (((3, 8, 4), (3, 5, 4), (3, 5, 4)), {"is_causal": True}),
    "one bias for every query": (((3, 5, 4), (3, 8, 4), (3, 8, 4)), {"attn_mask": torch.arange(8.0)}),
    "bias, lower right": (((2, 2, 5, 4), (2, 2, 8, 4), (2, 2, 8, 4)), {"attn_mask": causal_lower_right(5, 8)}),
    "bias, upper left": (((2, 3, 5, 4), (2, 3, 8, 4), (2, 3, 8, 4)), {"attn_mask": causal_upper_left(5, 8)}),
    "bias, square": (((2, 3, 8, 4), (2, 3, 8, 4), (2, 3, 8, 4)), {"attn_mask": causal_lower_right(8, 8)}),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_form_of_the_function(call: str) -> None:
    shapes, options = CALLS[call]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    model = Own()
    expected = model(*inputs, **options)
    with dynattn_torch.apply(model, "dense"):
        out = model(*inputs, **options)
    assert out.grad_fn.name() != expected.grad_fn.name()  # it is another's
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sin().sum(), inputs) for y in (out, expected)))


def test_other_calls_are_left_alone() -> None:
    model, other, calls = Own(), Own(), []
    x = torch.randn(1, 2, 9, 4)
    with dynattn_torch.apply(model, "nm-1-4"), observing(calls.append):
        other(x, x, x)
        F.scaled_dot_product_attention(x, x, x)
        assert calls == []
        model(x, x, x)
    assert [(call.module, call.method) for call in calls] == [(model, NM(1, 4))]


def test_contexts_nest_and_end_with_an_error() -> None:
    model = encoder()
    x = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
    expected, before = model(x), str(state(model))
    with dynattn_torch.apply(model, "nm-1-4"):
        quarter = model(x)
        with dynattn_torch.apply(model, "dense"):
            torch.testing.assert_close(model(x), expected)
        assert torch.equal(model(x), quarter)
    with pytest.raises(RuntimeError, match="so"), dynattn_torch.apply(model, "nm-1-4"):
        raise RuntimeError("so")
    assert str(state(model)) == before


def test_compiled_whole_before_and_meanwhile() -> None:
    torch.compiler.reset()
    model = encoder(dropout=0.0).layers[0].train()  # in eval() it is one operator of PyTorch's
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
    expected = model(x)
    torch.testing.assert_close(compiled(x), expected)
    with dynattn_torch.apply(model, "nm-1-4"):
        torch.testing.assert_close(compiled(x), model(x))
        assert not torch.allclose(compiled(x), expected)
    torch.testing.assert_close(compiled(x), expected)


def test_a_function_s_caller_compiles_whole() -> None:
    torch.compiler.reset()
    model = Own()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(1, 2, 9, 4)
    expected = compiled(x, x, x)
    with dynattn_torch.apply(model, "nm-1-4"):
        assert not torch.allclose(compiled(x, x, x), expected)
        torch.testing.assert_close(compiled(x, x, x), model(x, x, x))
    assert torch.equal(compiled(x, x, x), expected)


def test_what_keeps_attention_of_its_own_is_named() -> None:
    class Quantizable(nn.MultiheadAttention):
        pass

    model = nn.ModuleList([nn.MultiheadAttention(8, 2), Quantizable(8, 2), ByHand()])
    with pytest.warns(UserWarning, match=r"in part: 2 of its attention modules .* \(Quantizable, ByHand\)") as told:  # noqa: SIM117
        with dynattn_torch.apply(model, "dense") as found:
            assert type(model[0]) is MultiheadAttention
    assert told[0].filename == __file__
    assert [part.name for part in found.own] == ["1", "2"]
    with pytest.raises(ValueError, match=r"those of ByHand keep attention of their own \(ByHand\); leave it"):
        dynattn_torch.apply(ByHand(), "dense").__enter__()
    with pytest.raises(ValueError, match="those of Linear do not attend"):
        dynattn_torch.apply(nn.Linear(2, 2), "dense").__enter__()


def test_bad_input_gets_a_clear_error() -> None:
    model = Own()
    with pytest.raises(TypeError, match="model must be a module: got str"):
        dynattn_torch.apply("bert", "dense").__enter__()  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"apply: method must be a method or its short name: got 4; pass NM\(2, 4\)"):
        dynattn_torch.apply(model, 4).__enter__()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n must be between 1 and m"):
        dynattn_torch.apply(model, "nm-9-4").__enter__()
    with pytest.raises(ValueError, match="must be one layer's: got"):
        dynattn_torch.apply(model, PerLayer({range(1): NM(1, 1)}, default=NM(1, 2))).__enter__()
    x = torch.randn(1, 2, 5, 4)
    with dynattn_torch.apply(model, "dense"):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(RuntimeError, match=r"must not be copied or pickled .* leave the context first"):
                copied(model)
        with pytest.raises(ValueError, match="attn_mask must be None with is_causal=True"):
            model(x, x, x, torch.ones(5, 5).bool(), is_causal=True)
    assert "forward" not in vars(model)
