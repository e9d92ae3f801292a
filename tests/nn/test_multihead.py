"""``dynattn.nn.MultiheadAttention`` against ``torch.nn.MultiheadAttention``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynattn import NM, TopK, attention
from dynattn.nn import MultiheadAttention

DENSE = NM(1, 1)
BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 4, 5, 7, 16
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "other widths": {"kdim": 6, "vdim": 10},
    "learned key": {"add_bias_kv": True},
    "key of zeros": {"add_zero_attn": True, "batch_first": True},
    "both, other widths": {"add_bias_kv": True, "add_zero_attn": True, "vdim": 6, "batch_first": True},
}
PADDING = torch.tensor([[False] * KEYS, [False] * 4 + [True] * 3])
MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "padding": {"key_padding_mask": PADDING},
    "padding added": {"key_padding_mask": PADDING.double() * -3},
    "bool": {"attn_mask": torch.ones(QUERIES, KEYS).triu(2).bool()},
    "added": {"attn_mask": torch.linspace(-1, 1, QUERIES * KEYS).reshape(QUERIES, KEYS).double()},
    "by head": {"attn_mask": torch.linspace(-1, 1, BATCH * HEADS * QUERIES * KEYS).reshape(-1, QUERIES, KEYS).double()},
    "bool by head": {"attn_mask": torch.arange(BATCH * HEADS * QUERIES * KEYS).reshape(-1, QUERIES, KEYS) % 3 == 1},
    "bool and padding": {"attn_mask": torch.ones(QUERIES, KEYS).triu(2).bool(), "key_padding_mask": PADDING},
    "added and padding": {
        "attn_mask": torch.linspace(-1, 1, QUERIES * KEYS).reshape(QUERIES, KEYS).double(), "key_padding_mask": PADDING,
    },
}  # fmt: skip


def pair(**form: Any) -> tuple[nn.MultiheadAttention, MultiheadAttention]:
    """PyTorch's module and ours, with the same weights, none of them zero."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **form)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, method=DENSE, **form)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors(module: nn.MultiheadAttention, batched: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((QUERIES, WIDTH), (KEYS, module.kdim), (KEYS, module.vdim))
    batch = BATCH if batched else 1
    made = [torch.randn(batch, *size, dtype=torch.float64, generator=generator) for size in sizes]
    if not batched:
        return [x[0].requires_grad_() for x in made]
    return [(x if module.batch_first else x.transpose(0, 1)).requires_grad_() for x in made]


def agree(theirs: nn.MultiheadAttention, ours: MultiheadAttention, inputs: list[Tensor], **options: Any) -> None:
    """Outputs, weights, and gradients of inputs and parameters."""
    results, gradients = [], []
    for module in (theirs, ours):
        out, weights = module(*inputs, **options)
        results.append([out] if weights is None else [out, weights])
        loss = torch.stack([x.sin().sum() for x in results[-1]]).sum()
        gradients.append(torch.autograd.grad(loss, [*inputs, *module.parameters()], allow_unused=True))
    assert len(results[0]) == len(results[1]) == 1 + options.get("need_weights", True)
    for found in (results, gradients):
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_it_computes_the_same(form: str, masks: str) -> None:
    theirs, ours = pair(**FORMS[form])
    for options in ({"need_weights": False}, {"need_weights": True}, {"average_attn_weights": False}):
        agree(theirs, ours, tensors(theirs), **MASKS[masks], **options)


@pytest.mark.parametrize("form", ["plain", "batch_first", "both, other widths"])
def test_without_a_batch(form: str) -> None:
    theirs, ours = pair(**FORMS[form])
    for masks in (
        {},
        {"key_padding_mask": PADDING[1]},
        MASKS["bool"],
        {"attn_mask": MASKS["by head"]["attn_mask"][:4]},
    ):
        for options in ({"need_weights": False}, {"average_attn_weights": False}):
            agree(theirs, ours, tensors(theirs, batched=False), **masks, **options)


@pytest.mark.parametrize("padding", [None, PADDING])
@pytest.mark.parametrize("floating", [True, False])
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_causal_self_attention(padding: Tensor | None, floating: bool) -> None:
    theirs, ours = pair(batch_first=True)
    x = tensors(theirs)[1][..., :WIDTH].detach().requires_grad_()
    mask = nn.Transformer.generate_square_subsequent_mask(KEYS, dtype=torch.float64)
    mask = mask if floating else mask.isinf()
    for options in ({"need_weights": False}, {"need_weights": True}):
        agree(theirs, ours, [x, x, x], attn_mask=mask, key_padding_mask=padding, is_causal=True, **options)
    out, _ = ours(x, x, x, key_padding_mask=padding, is_causal=True, need_weights=False)  # without the mask
    torch.testing.assert_close(out, ours(x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=False)[0])


def test_a_causal_hint_with_other_lengths_or_appended_keys_reads_the_mask() -> None:
    mask = torch.ones(QUERIES, KEYS).triu(1 + KEYS - QUERIES).bool()
    for form in ("plain", "learned key"):
        _, ours = pair(**FORMS[form])
        inputs = tensors(ours)
        expected = ours(*inputs, attn_mask=mask)[0]
        torch.testing.assert_close(ours(*inputs, attn_mask=mask, is_causal=True)[0], expected)
        with pytest.raises(ValueError, match=r"is_causal needs an .*: got 5 queries and .* pass the mask too"):
            ours(*inputs, is_causal=True)


@pytest.mark.parametrize("form", ["learned key", "key of zeros", "both, other widths"])
def test_a_causal_hint_where_appended_keys_make_up_the_difference_reads_the_mask(form: str) -> None:
    """PyTorch refuses the hint without a mask, everywhere."""
    theirs, ours = pair(**FORMS[form])
    appended = 2 if form.startswith("both") else 1
    query, key, value = tensors(theirs)
    axis = 1 if theirs.batch_first else 0
    key, value = (x.detach().narrow(axis, 0, QUERIES - appended).requires_grad_() for x in (key, value))
    mask = torch.ones(QUERIES, QUERIES - appended).triu(1).bool()
    agree(theirs, ours, [query, key, value], attn_mask=mask, is_causal=True)
    for module in (theirs, ours):
        with pytest.raises((RuntimeError, ValueError), match=r"(?i)needs? (an )?attn_mask"):
            module(query, key, value, is_causal=True)


@pytest.mark.parametrize("method", [NM(1, 2), TopK(3), NM(2, 4, window=2)])
def test_a_method_keeps_what_it_keeps(method: Any) -> None:
    _, ours = pair(batch_first=True)
    ours.method = method
    query, key, value = tensors(ours)
    mask = MASKS["bool"]["attn_mask"]
    out, weights = ours(query, key, value, attn_mask=mask, average_attn_weights=False)
    parts = zip((query, key, value), ours.in_proj_weight.chunk(3), ours.in_proj_bias.chunk(3), strict=True)
    q, k, v = ((x @ w.T + b).unflatten(-1, (HEADS, -1)).transpose(1, 2) for x, w, b in parts)
    heads = attention(q, k, v, method, attn_mask=~mask)
    torch.testing.assert_close(out, ours.out_proj(heads.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(weights @ v, heads)
    assert bool((weights == 0).any(dim=-1).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, QUERIES, dtype=torch.float64))
    torch.testing.assert_close(ours(query, key, value, attn_mask=mask, need_weights=False)[0], out)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_an_encoder_layer_calls_it(norm_first: bool, batch_first: bool) -> None:
    """In ``eval()`` without gradients PyTorch's layer takes the weights and computes dense attention itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=batch_first, norm_first=norm_first).double().eval()
    ours = copy.deepcopy(layer)
    ours.self_attn = MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, dtype=torch.float64, method=DENSE)
    ours.self_attn.load_state_dict(layer.self_attn.state_dict())
    x = torch.randn(2, 12, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), layer(x))
        ours.self_attn.method = NM(1, 4)
        assert not torch.allclose(ours(x), layer(x))


@pytest.mark.parametrize("causal", [True, False])
def test_an_encoder_of_such_layers(causal: bool) -> None:
    """It is built of copies of a layer, and pads what it would nest."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True).double().eval()
    theirs = nn.TransformerEncoder(layer, 2).eval()
    layer.self_attn = MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64, method=DENSE)
    with pytest.warns(UserWarning, match="use_nested_tensor is False"):
        ours = nn.TransformerEncoder(layer, 2).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, KEYS, WIDTH, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(KEYS, dtype=torch.float64) if causal else None
    padding = torch.zeros(2, KEYS, dtype=torch.float64).masked_fill(PADDING, -torch.inf)
    with torch.no_grad():
        out, expected = ours(x, mask, padding), theirs(x, mask, padding)
    torch.testing.assert_close(out[~PADDING], expected[~PADDING])


def test_a_query_that_may_attend_to_nothing_gets_the_bias() -> None:
    _, ours = pair()
    mask = torch.zeros(QUERIES, KEYS, dtype=torch.bool)
    mask[2] = True
    out, weights = ours(*tensors(ours), attn_mask=mask)
    torch.testing.assert_close(out[2], ours.out_proj.bias.expand(BATCH, -1))
    assert weights is not None
    assert bool((weights[:, 2] == 0).all())


def test_dropout_in_training_alone() -> None:
    ours = MultiheadAttention(WIDTH, HEADS, dropout=0.5, method=NM(1, 2))
    x = torch.randn(9, 2, WIDTH)
    torch.manual_seed(0)
    first = ours(x, x, x)
    assert not torch.equal(first[0], ours(x, x, x)[0])
    torch.manual_seed(0)
    assert torch.equal(first[0], ours(x, x, x)[0])
    ours.eval()
    assert torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1: got 1"):
        MultiheadAttention(WIDTH, HEADS, dropout=1.0)


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_drawn_anew_as_pytorchs_module_draws_them(form: str) -> None:
    """As those of a module are that was built on the meta device."""
    drawn = []
    for module in pair(**FORMS[form]):
        torch.manual_seed(1)
        module._reset_parameters()
        drawn.append(module.state_dict())
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=0)


def test_it_compiles_whole() -> None:
    torch.compiler.reset()
    ours = MultiheadAttention(WIDTH, HEADS, batch_first=True, method=NM(1, 2))
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (8, 11):
        x = torch.randn(2, length, WIDTH)
        padding = (torch.arange(length) > 6).expand(2, -1)
        got, expected = (module(x, x, x, padding, need_weights=False)[0] for module in (compiled, ours))
        torch.testing.assert_close(got, expected)
        gradients = (torch.autograd.grad(y.square().sum(), list(ours.parameters())) for y in (got, expected))
        torch.testing.assert_close(*gradients)


def test_it_is_exported_with_its_length_open() -> None:
    ours = MultiheadAttention(WIDTH, HEADS, batch_first=True, method=NM(1, 2)).eval()
    encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True).eval()
    encoder.self_attn = ours
    shapes = ({1: torch.export.Dim("length", min=2, max=4096)},)
    with torch.no_grad():
        program = torch.export.export(encoder, (torch.randn(2, 9, WIDTH),), dynamic_shapes=shapes).module()
        x = torch.randn(2, 21, WIDTH)
        torch.testing.assert_close(program(x), encoder(x))


def test_autocast_copies_and_pickles() -> None:
    ours = MultiheadAttention(WIDTH, HEADS, method=NM(1, 4), add_bias_kv=True)
    x = torch.randn(9, 2, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x, x, x, torch.zeros(2, 9))[0].dtype == torch.bfloat16
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x, x, x)[0], ours(x, x, x)[0])
    assert "num_heads=4, method=nm-1-4" in repr(ours)


def test_bad_input_gets_a_clear_error() -> None:
    _, ours = pair(batch_first=True)
    query, key, value = tensors(ours)
    nested = torch.nested.nested_tensor([query[0].detach()])
    refused: list[tuple[type[Exception], str, tuple, dict]] = [
        (TypeError, "query must not be nested: .* enable_nested_tensor=False", (nested, nested, nested), {}),
        (ValueError, "must have 3 dimensions, or 2 without a batch: got .*; add or take", (query, key[0], value), {}),
        (ValueError, r"width of key must be 16: got \(2, 7, 9\); build .* kdim=9", (query, key[..., :9], value), {}),
        (ValueError, "one batch, .*; check batch_first", (query[:1], key, value), {}),
        (ValueError, "key and value one length: got", (query, key, value[:, :3]), {}),
        (TypeError, "attn_mask must be bool or floating point: got torch.int64; convert", (query, key, value),
         {"attn_mask": torch.ones(QUERIES, KEYS).long()}),
        (ValueError, r"attn_mask must have shape \(5, 7\) or \(8, 5, 7\): got \(7, 5\)", (query, key, value),
         {"attn_mask": torch.ones(KEYS, QUERIES)}),
        (ValueError, r"key_padding_mask must have shape \(2, 7\): got \(2, 5\)", (query, key, value),
         {"key_padding_mask": PADDING[:, :5]}),
    ]  # fmt: skip
    for kind, text, inputs, options in refused:
        with pytest.raises(kind, match=text):
            ours(*inputs, **options)
    with pytest.raises(ValueError, match="multiple of num_heads: got 10, 3"):
        MultiheadAttention(10, 3)
