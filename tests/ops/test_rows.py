"""Top-k, threshold and mass attention by the kernels against their definitions: routes, gradients, compilers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import Mass, Threshold, TopK
from dynattn.kernels import cpu
from dynattn.ops.rows import row_attention
from tests.covering import half
from tests.whole_numbers import inputs

LENGTHS = [(1, 1), (17, 64), (64, 17), (130, 130), (63, 130), (5, 300), (200, 72)]
METHODS = [TopK(k=5), TopK(ratio=0.3), TopK(ratio=0.3, floor=7), Threshold(0.05), Mass(0.81)]
MASKS = ["none", "padding", "by query", "added"]

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")


def masked(kind: str, q_len: int, kv_len: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(2)
    return {
        "none": None,
        "padding": torch.arange(kv_len) < torch.tensor([kv_len, kv_len // 2])[:, None, None, None],
        "by query": torch.rand(2, 4, q_len, kv_len, generator=generator) < 0.6,
        "added": torch.randint(-2, 3, (q_len, kv_len), generator=generator).float(),
    }[kind]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("causal", [False, True])
def test_definition_with_the_certificate(lengths: tuple[int, int], kind: str, causal: bool) -> None:
    (query, key, value), mask = inputs(*lengths), masked(kind, *lengths)
    exactly = [x.double() for x in (query, key, value)]
    for method in METHODS:
        (out, aux), (want, exact) = (
            dynattn.attention(
                q, k, v, method, attn_mask=mask, causal=causal, scale=0.5, return_aux=True, backend=backend
            )
            for backend, (q, k, v) in (("cpu", (query, key, value)), ("reference", exactly))
        )
        torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(aux.logsumexp.double(), exact.logsumexp, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(aux.kept_mass.double(), exact.kept_mass, rtol=1e-5, atol=1e-5)
        assert torch.equal(aux.density, exact.density)
        alone = dynattn.attention(query, key, value, method, attn_mask=mask, causal=causal, scale=0.5, backend="cpu")
        assert torch.equal(alone, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_that_of_the_same_arithmetic(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, 200, 32, generator=generator).to(dtype) for _ in range(3))
    for method in (TopK(ratio=0.25), Threshold(0.01), Mass(0.9)):
        exact, plain = (
            dynattn.attention(query.to(kind), key.to(kind), value.to(kind), method, causal=True, backend="reference")
            for kind in (torch.float64, dtype)
        )
        got = dynattn.attention(query.mT.contiguous().mT, key, value, method, causal=True, backend="cpu")
        assert got.dtype == dtype
        assert (got.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max() + 1e-6


@pytest.mark.parametrize("lengths", [(130, 130), (63, 130), (5, 300), (200, 72)], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradients(lengths: tuple[int, int], dropout_p: float) -> None:
    for method, causal, kind in itertools.product(METHODS, (False, True), ("none", "padding", "added")):
        found = []
        for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
            query, key, value = (x.requires_grad_() for x in inputs(*lengths, dtype))
            out, aux = dynattn.attention(
                query, key, value, method, attn_mask=masked(kind, *lengths), causal=causal, scale=0.5,
                backend=backend, dropout_p=dropout_p, seed=5 if dropout_p else None, return_aux=True,
            )  # fmt: skip
            loss = out.sin().sum() + aux.logsumexp.clamp(min=-1e3).square().sum() / 100
            found.append([x.double() for x in torch.autograd.grad(loss, (query, key, value))] + [out.double()])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_rows_of_scores_that_are_large_in_size() -> None:
    """Nothing is left of the logarithm of their number in their logsumexp."""
    for low, method in itertools.product((torch.finfo(torch.float32).min, -1e9, 1e9), [*METHODS, Threshold(1e-6)]):
        bias = torch.zeros(20, 70)
        bias[3], bias[7], bias[7, 50:] = low, low, -math.inf
        found = []
        for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
            query, key, value = (x.requires_grad_() for x in inputs(20, 70, dtype))
            at = torch.ones(20, 1).index_fill(0, torch.tensor([3, 7]), 0.0)  # whose products are 0
            out, aux = dynattn.attention(
                query * at.to(dtype), key, value, method, attn_mask=bias, scale=0.5, backend=backend, return_aux=True
            )
            gradients = torch.autograd.grad(out.sin().sum(), (query, key, value))
            found.append([x.double() for x in (*gradients, out, aux.kept_mass, aux.density)])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [TopK(k=20), TopK(ratio=0.25), Threshold(0.006), Mass(0.5)])
@pytest.mark.parametrize("q_len", [32, 1])
def test_the_gradient_holds_the_forwards_choice(method: TopK | Threshold | Mass, q_len: int) -> None:
    """Near ties, which rounding decides: dV is nonzero for the very keys that the output was made of."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(1, 1, 16, 32, generator=generator)
    key = torch.cat([base * (1 + 2e-7 * torch.randn(base.shape, generator=generator)) for _ in range(12)], 2)
    for _ in range(5):
        query = torch.randn(1, 1, q_len, 32, generator=generator, requires_grad=True)
        value = torch.eye(192)[None, None].requires_grad_()
        for row in range(q_len):
            out = dynattn.attention(query, key, value, method, backend="cpu")
            (d_value,) = torch.autograd.grad(out[0, 0, row].sum(), value)
            assert torch.equal(d_value[0, 0].sum(-1) > 0, out[0, 0, row] > 0)


def test_equal_keys_get_the_same_gradient_as_the_definition_gives() -> None:
    """Whole rows of ties: the first k keys are kept, and no other has a gradient."""
    query, value = torch.ones(1, 1, 40, 8), torch.randn(1, 1, 100, 8, requires_grad=True)
    key = torch.ones(1, 1, 100, 8)
    out = dynattn.attention(query, key, value, TopK(k=33), backend="cpu")
    torch.testing.assert_close(out, value[:, :, :33].mean(2, keepdim=True).expand_as(out))
    (d_value,) = torch.autograd.grad(out.sum(), value)
    torch.testing.assert_close(d_value[0, 0, :33], torch.full((33, 8), 40 / 33))
    assert not d_value[0, 0, 33:].any()


@pytest.mark.parametrize(("lengths", "value_dim"), [((63, 130), 6), ((9, 1300), 64), ((5, 700), 100)])
def test_dropout_is_the_definitions(lengths: tuple[int, int], value_dim: int) -> None:
    query, key, _ = inputs(*lengths)
    value = torch.randn(2, 2, lengths[1], value_dim, generator=torch.Generator().manual_seed(4))
    for method in METHODS:
        options = {"method": method, "causal": True, "dropout_p": 0.4, "seed": 7}
        got, want = (dynattn.attention(query, key, value, backend=name, **options) for name in ("cpu", "reference"))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [TopK(k=7), Threshold(0.05), Mass(0.81)])
def test_values_that_nobody_keeps_may_be_garbage(method: TopK | Threshold | Mass) -> None:
    query, key, value = inputs(30, 90)
    mask = torch.arange(90) != 33
    want = dynattn.attention(query, key, value, method, attn_mask=mask)
    key[:, :, 33], value[:, :, 33] = math.nan, math.inf
    tensors = [x.requires_grad_() for x in (query, key, value)]
    out = dynattn.attention(query, key, value, method, attn_mask=mask, backend="cpu")
    torch.testing.assert_close(out, want)
    for gradient in torch.autograd.grad(out.sum(), tensors):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("method", [TopK(k=7), Threshold(0.05), Mass(0.81)])
@pytest.mark.parametrize("lengths", [(1, 90), (30, 90), (70, 200)], ids=str)
def test_gradients_are_nan_where_infinite_scores_are_kept(
    method: TopK | Threshold | Mass, lengths: tuple[int, int]
) -> None:
    """A query with an infinity has infinite scores throughout, and NaN where a key holds 0."""
    query, key, value = inputs(*lengths)
    query[0, 0, lengths[0] // 2, 3], query[1, 3, -1, 0] = math.inf, -math.inf
    key[1, 0, 20, 3], key[1, 1, 40, 1] = math.nan, math.inf
    found = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        tensors = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        out = dynattn.attention(tensors[0], tensors[1], tensors[2], method, backend=backend)
        found.append([x.isnan() for x in (out, *torch.autograd.grad(out.sum(), tensors))])
    for got, want in zip(*found, strict=True):
        assert want.any()
        assert not want.all()
        assert torch.equal(got, want)


@pytest.mark.parametrize(("kind", "aux", "dropout_p"), half(["none", "added"], [False, True], [0.0, 0.4]))
def test_opcheck(kind: str, aux: bool, dropout_p: float) -> None:
    tensors = [x.requires_grad_() for x in inputs(40, 50)]
    seed, mask = torch.tensor(3) if dropout_p else None, masked(kind, 40, 50)
    call = ("topk-0.3", False, 0.25, dropout_p)
    torch.library.opcheck(row_attention, (*tensors, mask, seed, *call, aux, "cpu"))
    query, key, value = (x.detach() for x in tensors)
    out, logsumexp, *_, least, last = row_attention(query, key, value, mask, seed, *call, False, "cpu")
    torch.library.opcheck(
        torch.ops.dynattn.row_attention_backward.default,
        (torch.ones_like(out), logsumexp, out, logsumexp, least, last, query, key, value, mask, seed, *call, "cpu"),
    )


def test_compiles_whole() -> None:
    tensors = [x.requires_grad_() for x in inputs(100, 100)]

    def step(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dynattn.attention(query, key, value, TopK(ratio=0.25), causal=True).square().sum()

    want = torch.autograd.grad(step(*tensors), tensors)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*tensors), tensors), want)


def test_autocast_and_second_derivatives() -> None:
    query, key, value = (x.requires_grad_() for x in inputs(40, 40))
    with torch.autocast("cpu", torch.bfloat16):
        assert dynattn.attention(query, key, value, TopK(k=8)).dtype == torch.bfloat16
    (first,) = torch.autograd.grad(
        dynattn.attention(query, key, value, TopK(k=8)).sin().sum(), query, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="second derivatives are not offered"):
        first.sum().backward()


def test_what_autograd_saves_is_linear() -> None:
    query, key, value = (torch.randn(1, 2, 512, 16, requires_grad=True) for _ in range(3))
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        dynattn.attention(query, key, value, TopK(ratio=0.25))
    assert sum(saved) == 4 * query.numel() + 3 * 2 * 512


def test_routes() -> None:
    query, key, value = inputs(40, 40)
    mask = torch.zeros(40, 40)
    for method in METHODS:
        plan = dynattn.explain(query, key, value, method, attn_mask=mask, return_aux=True, dropout_p=0.1)
        assert plan.backend == "cpu"
        assert "all pairs scored, values of the kept ones read" in plan.reason
        plan = dynattn.explain(query, key, value, method, attn_mask=mask.clone().requires_grad_())
        assert plan.backend == "reference"
        assert "the gradient of a mask is not made where rows or blocks are chosen" in plan.rejected["cpu"]
        assert dynattn.explain(query.double(), key.double(), value.double(), method).backend == "reference"
    assert "all pairs scored" not in dynattn.explain(query, key, value, TopK(ratio=1.0)).reason  # dense attention
    assert dynattn.explain(query, key, value, TopK(ratio=1.0), attn_mask=mask).backend == "cpu"


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_empty(shape: tuple[int, int, int, int], causal: bool, method: TopK | Threshold | Mass) -> None:
    batch, heads, q_len, kv_len = shape
    query = torch.randn(batch, heads, q_len, 8, requires_grad=True)
    key = torch.randn(batch, heads, kv_len, 8, requires_grad=True)
    out, aux = dynattn.attention(query, key, key, method, causal=causal, return_aux=True, backend="cpu")
    assert out.shape == (batch, heads, q_len, 8)
    assert not out.any()
    assert (aux.density == 1).all()
    gradients = torch.autograd.grad(out.sum(), (query, key))
    assert not any(gradient.any() for gradient in gradients)
