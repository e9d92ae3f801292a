"""``dynattn.attention`` as its users meet it: the contract, properties, and what bad input gets."""

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import dynattn
from dynattn import NM, attention, explain, metrics
from dynattn.methods import parse
from tests import gradients
from tests.methods.every import NAMES

ROUTES = ["auto", "reference"]


def inputs(
    *shape: int, kv_len: int | None = None, kv_heads: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch, heads, q_len, head_dim = shape
    kv_shape = (batch, kv_heads or heads, q_len if kv_len is None else kv_len, head_dim)
    query, key, value = (torch.randn(s, generator=generator) for s in (shape, kv_shape, kv_shape))
    return query, key, value


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("method", [NM(1, 1), NM(2, 2), NM(4, 4), NM(5, 5)], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_n_equal_m_is_dense_attention(route: str, method: NM, kv_heads: int) -> None:
    query, key, value = inputs(2, 4, 33, 16, kv_len=47, kv_heads=kv_heads)
    mask = torch.rand(2, 1, 33, 47, generator=torch.Generator().manual_seed(1)) > 0.3
    out, aux = attention(query, key, value, method, attn_mask=mask, backend=route, return_aux=True)
    dense = scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(aux.kept_mass, torch.ones_like(aux.kept_mass))
    assert torch.equal(aux.density, torch.ones(2, 4))


@pytest.mark.parametrize("route", ROUTES)
def test_causal_is_aligned_bottom_right(route: str) -> None:
    query, key, value = inputs(1, 2, 5, 8, kv_len=9)
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4)
    got = attention(query, key, value, NM(2, 4), causal=True, backend=route)
    torch.testing.assert_close(got, attention(query, key, value, NM(2, 4), attn_mask=mask, backend=route))
    torch.testing.assert_close(got[:, :, -1:], attention(query[:, :, -1:], key, value, NM(2, 4), backend=route))


@pytest.mark.parametrize("route", ROUTES)
def test_rows_with_nothing_allowed_give_zero(route: str) -> None:
    query, key, value = inputs(1, 2, 6, 8, kv_len=3)  # causal: queries 0, 1 and 2 see nothing
    out, aux = attention(query, key, value, NM(1, 2), causal=True, backend=route, return_aux=True)
    assert torch.equal(out[:, :, :3], torch.zeros(1, 2, 3, 8))
    assert (aux.logsumexp[:, :, :3] == -math.inf).all()
    assert torch.equal(aux.kept_mass[:, :, :3], torch.ones(1, 2, 3))
    assert aux.logsumexp[:, :, 3:].isfinite().all()
    nothing = torch.zeros(6, 3, dtype=torch.bool)
    out, aux = attention(query, key, value, NM(1, 2), attn_mask=nothing, backend=route, return_aux=True)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(aux.density, torch.ones(1, 2))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 3, 0, 4)])
def test_empty_tensors_are_fine(route: str, shape: tuple[int, int, int, int]) -> None:
    query, key, value = inputs(*shape, kv_len=5)
    assert attention(query, key, value, NM(2, 4), backend=route).shape == shape
    query, key, value = inputs(2, 3, 4, 4, kv_len=0)
    out, aux = attention(query, key, value, NM(2, 4), backend=route, return_aux=True)
    assert torch.equal(out, torch.zeros(2, 3, 4, 4))
    assert (aux.logsumexp == -math.inf).all()


@pytest.mark.parametrize("route", ROUTES)
def test_parts_of_the_keys_merge_exactly(route: str) -> None:
    query, key, value = inputs(1, 2, 10, 16, kv_len=64)
    whole, aux = attention(query, key, value, NM(2, 4), backend=route, return_aux=True)
    parts = [
        attention(query, key[:, :, s], value[:, :, s], NM(2, 4), backend=route, return_aux=True)
        for s in (slice(0, 24), slice(24, 64))
    ]
    logsumexp = torch.stack([part_aux.logsumexp for _, part_aux in parts])
    weights = (logsumexp - logsumexp.logsumexp(0)).exp().unsqueeze(-1)
    merged = (weights * torch.stack([out for out, _ in parts])).sum(0)
    torch.testing.assert_close(merged, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logsumexp.logsumexp(0), aux.logsumexp, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), m=st.integers(1, 9), q_len=st.integers(1, 9), groups=st.integers(1, 6), seed=st.integers(0, 999))
def test_properties(data: st.DataObject, m: int, q_len: int, groups: int, seed: int) -> None:
    n = data.draw(st.integers(1, m))
    query, key, value = inputs(1, 2, q_len, 8, kv_len=groups * m, seed=seed)
    out, aux = attention(query, key, value, NM(n, m), return_aux=True)
    assert torch.equal(aux.density, torch.full((1, 2), n / m))  # exactly N of every full, unmasked group
    assert (aux.kept_mass >= n / m - 1e-6).all()
    assert (aux.kept_mass <= 1 + 1e-6).all()
    order = torch.randperm(q_len, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(attention(query[:, :, order], key, value, NM(n, m)), out[:, :, order])
    dense = attention(query, key, value, NM(m, m))
    diameter = torch.cdist(value, value).amax((-2, -1)).unsqueeze(-1)  # the certificate of docs/theory.md
    assert ((out - dense).norm(dim=-1) <= (1 - aux.kept_mass) * diameter + 1e-5).all()


@pytest.mark.parametrize("method", [NM(2, 4), NM(1, 2, window=2, sinks=1), NM(3, 3), NM(1, 2, stride=3)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(method: NM, causal: bool, masked: bool) -> None:
    query, key, value = (x.double().requires_grad_() for x in inputs(1, 4, 5, 3, kv_len=9, kv_heads=2))
    bias = torch.randn(4, 1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_(masked)

    def function(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        mask = bias if masked else None
        out, aux = attention(query, key, value, method, attn_mask=mask, causal=causal, return_aux=True)
        return out, aux.logsumexp.clamp(min=-1e6)  # rows with nothing allowed are -inf

    gradients.check(function, (query, key, value, bias))


def test_gradients_are_blocked_without_changing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (x.requires_grad_() for x in inputs(2, 4, 50, 8, kv_len=70, kv_heads=2))
    bias = torch.zeros(2, 1, 50, 70, requires_grad=True)
    call = lambda: attention(query, key, value, NM(2, 4), attn_mask=bias, backend="reference").square().sum()  # noqa: E731
    whole = torch.autograd.grad(call(), (query, key, value, bias))
    monkeypatch.setattr("dynattn.reference.in_blocks._BLOCK_SCORES", 8 * 70 * 7)  # 7 rows at a time
    for expected, got in zip(whole, torch.autograd.grad(call(), (query, key, value, bias)), strict=True):
        torch.testing.assert_close(got, expected)


def test_kept_mass_and_density_carry_no_gradient() -> None:
    query, key, value = (x.requires_grad_() for x in inputs(1, 1, 4, 8))
    out, aux = attention(query, key, value, return_aux=True)
    assert out.requires_grad
    assert aux.logsumexp.requires_grad
    assert not aux.kept_mass.requires_grad
    assert not aux.density.requires_grad


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_without_graph_breaks_forward_and_backward(compiler: str) -> None:
    query, key, value = (x.requires_grad_() for x in inputs(1, 4, 20, 16, kv_len=24, kv_heads=2))

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, aux = attention(query * 2, key, value, NM(2, 4, window=4), causal=True, return_aux=True)
        return out.sum() + aux.logsumexp.sum() + aux.density.sum()

    eager = torch.autograd.grad(function(query, key, value), (query, key, value))
    compiled = torch.autograd.grad(
        torch.compile(function, fullgraph=True, backend=compiler)(query, key, value), (query, key, value)
    )
    for expected, got in zip(eager, compiled, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("method", [NM(2, 4), NM(1, 2), NM(1, 1)], ids=str)
def test_output_lies_in_memory_like_the_query(method: NM) -> None:
    plain = inputs(2, 3, 7, 16)
    query, key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in plain)
    for route in ("reference", "cpu"):
        out = attention(query, key, value, method, backend=route)
        assert out.transpose(1, 2).is_contiguous()
        torch.testing.assert_close(out, attention(plain[0], plain[1], plain[2], method, backend=route))


def test_a_last_dimension_that_is_not_contiguous_is_copied() -> None:
    query, key, value = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs(2, 3, 7, 16))
    expected = attention(query.contiguous(), key.contiguous(), value.contiguous())
    torch.testing.assert_close(attention(query, key, value), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_outputs_have_the_dtype_of_the_inputs(dtype: torch.dtype) -> None:
    query, key, value = (x.to(dtype) for x in inputs(1, 2, 9, 16))
    out, aux = attention(query, key, value, return_aux=True)
    assert out.dtype == dtype
    assert aux.logsumexp.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = attention(query.double(), key.double(), value.double())
    error = (out.double() - exact).norm() / exact.norm()
    assert error < {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]


Q, K, V = inputs(2, 4, 6, 8, kv_len=10, kv_heads=2)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"query": [1.0]}, TypeError, "query, key and value must be tensors: got list"),
        ({"query": Q[0]}, ValueError, "query must have 4 dimensions (batch, heads, length, head_dim): got (4, 6, 8)"),
        ({"key": K[..., :7]}, ValueError, "head_dim must match: query has 8, key has 7"),
        ({"key": K[:1]}, ValueError, "batch must match: query has 2, key has 1"),
        ({"value": V[:, :, :9]}, ValueError, "key and value must have the same heads and length"),
        ({"key": K[:, :0], "value": V[:, :0]}, ValueError, "heads of query must be a multiple"),
        ({"query": Q[:, :3]}, ValueError, "heads of query must be a multiple of heads of key and value: query has 3"),
        ({"query": Q[..., :0], "key": K[..., :0]}, ValueError, "head_dim must be at least 1: query has 0"),
        ({"value": torch.zeros(2, 2, 10, 0)}, ValueError, "head_dim must be at least 1: value has 0"),
        ({"query": Q.int(), "key": K.int(), "value": V.int()}, TypeError, "must share one dtype"),
        ({"key": K.half()}, TypeError, "must share one dtype"),
        ({"query": Q.to("meta")}, ValueError, "must be on one device: got meta, cpu, cpu"),
        ({"method": "nm-2-4"}, TypeError, "method must be a method such as NM(2, 4): got 'nm-2-4'"),
        ({"attn_mask": torch.ones(6, 10, dtype=torch.int64)}, TypeError, "attn_mask must be bool or floating point"),
        ({"attn_mask": [True]}, TypeError, "attn_mask must be a tensor or None"),
        ({"attn_mask": torch.zeros(6, 10).double()}, TypeError, "attn_mask must not be float64"),
        ({"attn_mask": torch.ones(6, 9).bool()}, ValueError, "must broadcast to (batch, heads, q_len, kv_len) = (2, 4"),
        ({"attn_mask": torch.ones(1, 2, 4, 6, 10).bool()}, ValueError, "attn_mask must broadcast"),
        ({"attn_mask": torch.ones(6, 10, device="meta").bool()}, ValueError, "must be on the device of query"),
        ({"causal": 1}, TypeError, "causal must be a bool: got 1"),
        ({"scale": 0.0}, ValueError, "scale must be finite and not 0: got 0.0"),
        ({"scale": math.nan}, ValueError, "scale must be finite and not 0: got nan"),
        ({"scale": math.inf}, ValueError, "scale must be finite and not 0: got inf"),
        ({"scale": "1"}, TypeError, "scale must be a number"),
        ({"backend": "gpu"}, ValueError, "backend must be 'auto' or one of 'cpu'"),
        ({"backend": None}, ValueError, "backend must be 'auto' or one of 'cpu'"),
        ({"backend": ["cpu"]}, ValueError, "backend must be 'auto' or one of 'cpu'"),
        ({"backend": "sdpa"}, RuntimeError, "backend 'sdpa' cannot run this: it is dense, and nm-2-4 is not"),
    ],
)
@pytest.mark.parametrize("function", [attention, explain])
def test_bad_input_gets_a_clear_error(function, change: dict, error: type[Exception], text: str) -> None:
    arguments = {"query": Q, "key": K, "value": V, "method": NM(2, 4), **change}
    tensors = [arguments.pop(name) for name in ("query", "key", "value", "method")]
    with pytest.raises(error, match="^attention: .*" + re.escape(text)):
        function(*tensors, **arguments)


def test_explain_names_the_backend_and_what_was_passed_over() -> None:
    plan = explain(Q.double(), K.double(), V.double(), NM(2, 4))
    assert plan.backend == "reference"
    assert set(plan.rejected) == {"cpu", "blockwise", "reordered", "sdpa"}
    assert "not float64" in plan.rejected["cpu"]
    assert "not cpu: " in str(plan)


def test_the_integrations_come_with_the_package() -> None:
    assert callable(dynattn.integrations.transformers.register)
    assert isinstance(dynattn.nn.Attention(8, 2), torch.nn.Module)


@pytest.mark.parametrize("name", NAMES)
def test_the_meta_device_gives_shapes(name: str) -> None:
    """Whatever computes the method elsewhere, and whether or not a gradient is recorded."""
    for needs_grad in (False, True):
        query, key, value = (
            torch.empty(2, 4, 19, width, device="meta", requires_grad=needs_grad) for width in (16, 16, 8)
        )
        out = attention(query, key, value, parse(name), causal=True)
        assert (out.shape, out.device.type, out.requires_grad) == ((2, 4, 19, 8), "meta", needs_grad)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_jit_trace_records_a_call(name: str) -> None:
    """While it records, sizes are tensors, and the default scale with them."""
    query, key, value = (torch.randn(3, 2, 4, 19, 16, generator=torch.Generator().manual_seed(0))).unbind()

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(query, key, value, parse(name))

    traced: Any = torch.jit.trace(function, (query, key, value), check_trace=False)
    for heads in (query + 1, query):
        assert torch.equal(traced(heads, key, value), function(heads, key, value))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_density_is_float32_whatever_the_default(dtype: torch.dtype) -> None:
    query, key, value = (torch.randn(3, 1, 2, 300, 8, generator=torch.Generator().manual_seed(0))).unbind()
    scores = torch.zeros(300, 300)
    want = attention(query, key, value, NM(1, 3), return_aux=True)[1].density, metrics.density(scores, scores < 1)
    torch.set_default_dtype(dtype)
    try:
        got = attention(query, key, value, NM(1, 3), return_aux=True)[1].density, metrics.density(scores, scores < 1)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_import_has_no_side_effects() -> None:
    import subprocess
    import sys

    code = (
        "import torch, sys; before = set(sys.modules); import dynattn; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "assert 'torch._dynamo' in before or 'torch._dynamo' not in sys.modules; "
        "assert 'transformers' not in new and 'matplotlib' not in new and 'typer' not in new, new; "
        "assert not any('dynattn_cpu' in line for line in open('/proc/self/maps')) if sys.platform == 'linux' else True"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_matches_the_distribution() -> None:
    from importlib.metadata import version

    assert dynattn.__version__ == version("dynattn")


@pytest.mark.parametrize("method", ["dense", "nm-2-4", "window-16-s2", "topk-8", "topk-1.0", "blocktopk-0.25-b16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [None, -0.5])
def test_what_the_last_key_holds_reaches_the_last_row_alone(
    method: str, dtype: torch.dtype, scale: float | None
) -> None:
    """At lengths that different backends compute: a causal mask keeps NaN and infinities from the rows before."""
    torch.manual_seed(0)
    asked = {"method": parse(method), "causal": True, "scale": scale}
    for length in (5, 40, 150):
        tensors = torch.randn(3, 1, 2, length, 16, dtype=dtype)
        query, key, value = tensors[:, :, :, :-1]
        want = attention(query, key, value, **asked)
        for place in (1, 2):
            for what in (math.nan, math.inf):
                spoilt = tensors.clone()
                spoilt[place, :, :, -1] = what
                query, key, value = spoilt
                found = attention(query, key, value, **asked)[:, :, :-1]
                assert torch.isfinite(found).all()
                if not method.startswith("block"):  # a block of queries chooses together
                    torch.testing.assert_close(found, want, rtol=1e-2, atol=1e-2)
