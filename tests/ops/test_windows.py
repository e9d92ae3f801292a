"""Windows block by block against the definition, on every size and mask."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import dynattn
from dynattn import Window
from dynattn.kernels import cpu
from dynattn.kernels.cpu import isas
from dynattn.maths import bands
from dynattn.ops import nm, windows
from tests.covering import half

SIZES = [
    (300, 300), (70, 300), (300, 70), (1, 300), (129, 129), (1, 1), (200, 5), (0, 5), (5, 0), (3, 300), (6, 50), (6, 5),
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "_BLOCK", 32)


def inputs(q_len: int, kv_len: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, n, length, 8, dtype=dtype) for n, length in ((4, q_len), (2, kv_len), (2, kv_len))]


def masks(q_len: int, kv_len: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def allowed(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < 0.7

    return {
        "none": None,
        "padding": allowed(2, 1, 1, kv_len),
        "by head": allowed(2, 4, q_len, kv_len),
        "bias": torch.randn(q_len, kv_len, generator=generator, dtype=torch.float64),
        "by query": allowed(1, 1, q_len, 1),
    }


@pytest.mark.parametrize(
    ("size", "mask", "causal"), half(SIZES, ["none", "padding", "by head", "bias", "by query"], [False, True])
)
def test_definition(size: tuple[int, int], mask: str, causal: bool) -> None:
    (query, key, value), attn_mask = inputs(*size), masks(*size)[mask]
    for window, sinks in itertools.product((1, 5, 40, 400), (0, 3, 10)):
        got, want = (
            dynattn.attention(
                query, key, value, Window(window, sinks), attn_mask=attn_mask, causal=causal, scale=0.4, backend=backend
            )
            for backend in ("blockwise", "reference")
        )
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("q_len", [1, 4, 100])
def test_gradients_also_of_a_bias(q_len: int) -> None:
    bias = torch.randn(q_len, 100, dtype=torch.float64)
    found = []
    for backend in ("blockwise", "reference"):
        tensors = [x.clone().requires_grad_() for x in (*inputs(q_len, 100), bias)]
        query, key, value, mask = tensors
        out = dynattn.attention(query, key, value, Window(7, 2), attn_mask=mask, causal=True, backend=backend)
        found.append(torch.autograd.grad(out.square().sum(), tensors))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("size", "mask", "causal"), half(SIZES, ["none", "padding", "by head", "bias", "by query"], [False, True])
)
def test_kernels_that_know_windows(size: tuple[int, int], mask: str, causal: bool) -> None:
    """Output and gradients in float32, forward alone and with a gradient to come."""
    attn_mask = masks(*size)[mask]
    cast = attn_mask.float() if mask == "bias" and attn_mask is not None else attn_mask
    for window, sinks in itertools.product((1, 5, 40, 100, 400), (0, 3, 70)):
        found = []
        for backend, dtype, bias in (("blockwise", torch.float32, cast), ("reference", torch.float64, attn_mask)):
            leaves = [x.to(dtype).requires_grad_() for x in inputs(*size)]
            query, key, value = leaves
            options: dict[str, Any] = {"attn_mask": bias, "causal": causal, "scale": 0.4, "backend": backend}
            out = dynattn.attention(query, key, value, Window(window, sinks), **options)
            with torch.no_grad():
                alone = dynattn.attention(query, key, value, Window(window, sinks), **options)
            found.append([x.double() for x in (out, alone, *torch.autograd.grad(out.sin().sum(), leaves))])
        torch.testing.assert_close(*found, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("q_len", [150, 97, 4])
def test_every_edge_of_a_window(q_len: int) -> None:
    """Tiles and bands that a window fills or misses by one key, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, 1, n, 8, generator=generator).requires_grad_() for n in (q_len, 150, 150)]
    query, key, value = leaves
    grad = torch.randn(1, 1, q_len, 8, generator=generator)
    distance = (torch.arange(150 - q_len, 150).unsqueeze(-1) - torch.arange(150)).abs()
    for window, sinks in itertools.product(range(1, 152), (0, 13)):
        kept = (distance < window) | (torch.arange(150) < sinks)
        want = scaled_dot_product_attention(query, key, value, attn_mask=kept)
        out = dynattn.attention(query, key, value, Window(window, sinks))
        with torch.no_grad():
            alone = dynattn.attention(query, key, value, Window(window, sinks))
        found = (out, alone, *torch.autograd.grad(out, leaves, grad))
        wanted = (want, want, *torch.autograd.grad(want, leaves, grad))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "portable"])
def test_every_kernel_that_knows_windows(isa: str) -> None:
    if not cpu.isa_available(isa):
        pytest.skip(f"this processor does not run {isa}")
    query, key, value = inputs(70, 300, torch.float32)
    want = dynattn.attention(query, key, value, Window(20, 4), causal=True, backend="reference")
    run, options = windows.window_attention, (20, 4, True, 8**-0.5)
    for needs_grad in (False, True):
        out, _ = run(query, key, value, None, *options, needs_grad, f"cpu-{isa}")
        torch.testing.assert_close(out, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_kernels_compute_the_blocks(dtype: torch.dtype) -> None:
    query, key, value = inputs(200, 200, dtype)
    exact = dynattn.attention(query.double(), key.double(), value.double(), Window(20, 4), backend="reference")
    out = dynattn.attention(query, key, value, Window(20, 4))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("dtype", "engine"),
    [(torch.float32, None), (torch.float16, None), *((torch.bfloat16, x) for x in (None, "tiles-portable", "here"))],
)
@pytest.mark.parametrize("q_len", [1, 4, 6, 7])
def test_few_queries(q_len: int, dtype: torch.dtype, engine: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are at most twice those of plain PyTorch, though windows and sinks are merged in this dtype, also where
    more queries go to a tile engine. Its logsumexp is that of rounded weights where no gradient is asked for: nothing
    may be merged by that."""
    if engine != "here":
        monkeypatch.setattr(isas, "tile_isa", lambda: engine)
    query, key, value = inputs(q_len, 300, dtype)
    for window, sinks in ((1, 1), (20, 4), (64, 0), (290, 3), (296, 8)):
        method = Window(window, sinks)
        wide = [x.double() for x in (query, key, value)]
        exact, aux = dynattn.attention(wide[0], wide[1], wide[2], method, backend="reference", return_aux=True)
        plain, out = (dynattn.attention(query, key, value, method, backend=one) for one in ("reference", "auto"))
        assert out.dtype == dtype
        errors = [(x.double() - exact).abs().max().item() for x in (out, plain)]
        assert errors[0] <= 2 * errors[1] + 2 * torch.finfo(dtype).eps
        for needs_grad in (False, True) if q_len <= windows._FEW else (True,):
            rest = (None, window, sinks, False, 8**-0.5, needs_grad, "cpu")
            _, logsumexp = windows.window_attention(query, key, value, *rest)
            torch.testing.assert_close(logsumexp.double(), aux.logsumexp, rtol=1e-5, atol=1e-5)


def test_few_queries_read_keys_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of windows and sinks alone: at most two runs of the cache, and all keys at once where the runs join."""
    lengths, storages = [], set()

    def noted(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        lengths.append(key.shape[2])
        storages.update(x.untyped_storage().data_ptr() for x in (key, value))
        return nm.nm_attention(query, key, value, *rest)

    monkeypatch.setattr(windows, "nm_attention", noted)
    for q_len, window, sinks, expected in (
        (1, 20, 4, [20, 4]), (1, 20, 0, [20]), (1, 296, 4, [300]), (1, 400, 0, [300]), (3, 20, 4, [22, 4]),
        (6, 290, 5, [300]),
    ):  # fmt: skip
        query, key, value = inputs(q_len, 300)  # float64, which no kernel that knows windows takes
        lengths.clear()
        storages.clear()
        dynattn.attention(query, key, value, Window(window, sinks), causal=True, backend="blockwise")
        assert lengths == expected
        assert storages == {x.untyped_storage().data_ptr() for x in (key, value)}


@pytest.mark.parametrize("added", [False, True])
def test_few_queries_whose_mask_leaves_one_run_or_none(added: bool) -> None:
    query, key, value = inputs(1, 300, torch.float32)
    allowed = torch.ones(2, 4, 1, 300, dtype=torch.bool)
    allowed[0, 0, :, :5] = False  # the sinks
    allowed[0, 1, :, 280:] = False  # the window
    allowed[0, 2] = False
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf) if added else allowed
    if added:
        mask[1, 0, :, 2], mask[1, 1, :, 290], mask[1, 2, :, 100] = torch.nan, torch.inf, torch.nan
    got, want = (
        dynattn.attention(query, key, value, Window(20, 5), attn_mask=mask, causal=True, backend=backend)
        for backend in ("auto", "reference")
    )
    torch.testing.assert_close(got, want, equal_nan=True)
    assert not got[0, 2].any()
    assert got.isnan().any(-1).flatten().tolist() == [False] * 4 + [added, added, False, False]


def test_rows_of_scores_that_are_large_in_size() -> None:
    """Nothing is left of the logarithm of their number in their logsumexp."""
    found = []
    for backend, dtype in (("auto", torch.float32), ("reference", torch.float64)):
        query, key, value = (x.to(dtype) for x in inputs(70, 70))
        bias = torch.zeros(70, 70, dtype=dtype)
        bias[5], bias[40], query[:, :, 5], query[:, :, 40] = torch.finfo(torch.float32).min, 1e9, 0, 0
        tensors = [x.requires_grad_() for x in (query, key, value)]
        out = dynattn.attention(query, key, value, Window(9, 3), attn_mask=bias, backend=backend)
        found.append([x.double() for x in (*torch.autograd.grad(out.sin().sum(), tensors), out)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nan_reaches_the_queries_whose_windows_hold_it_and_no_other(dtype: torch.dtype) -> None:
    query, key, value = inputs(200, 200, dtype)
    key[0, 0, 50], value[0, 0, 150] = torch.nan, torch.nan
    out = dynattn.attention(query, key, value, Window(5), backend="blockwise")
    bad = out.isnan().any(-1)
    assert bad[0, :2].all(0).nonzero().flatten().tolist() == [*range(46, 55), *range(146, 155)]
    assert not bad[0, 2:].any()
    assert not bad[1].any()


def test_work_is_linear_in_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "_BLOCK", 32)
    pairs = []

    def dense(query: Tensor, key: Tensor, *rest) -> tuple[Tensor, ...]:
        pairs.append(query.shape[0] * query.shape[2] * key.shape[2])
        return nm.nm_attention(query, key, *rest)

    monkeypatch.setattr(windows, "nm_attention", dense)
    for length in (512, 1024, 2048):
        query, key, value = inputs(length, length)
        dynattn.attention(query, key, value, Window(16, 4), causal=True)
    assert pairs == [2 * length * (32 + 15 + 4) for length in (512, 1024, 2048)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_operator_and_its_fake_agree_on_memory(dtype: torch.dtype) -> None:
    query, key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(100, 100, dtype))
    backend = "cpu" if dtype == torch.float32 else "reference"
    arguments = (query, key, value, None, 7, 2, True, 0.4, False, backend)
    torch.library.opcheck(windows.window_attention, arguments, test_utils="test_faketensor")


def test_compiles_whole() -> None:
    query, key, value = inputs(100, 100, torch.float32)

    def step(query: Tensor) -> Tensor:
        return dynattn.attention(query, key, value, Window(7, 2), causal=True)

    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(query), step(query))


def test_route() -> None:
    query, key, value = inputs(20, 20)
    assert "dense attention of blocks" in str(dynattn.explain(query, key, value, Window(4)))
    plan = dynattn.explain(query.float(), key.float(), value.float(), Window(4))
    assert (plan.backend, "fused C++ kernel that skips" in plan.reason) == ("blockwise", True)
    plan = dynattn.explain(query, key, value, Window(4), return_aux=True)
    assert plan.backend == "reference"
    assert plan.rejected["blockwise"] == "the kept mass needs the scores of all pairs"
    plan = dynattn.explain(query, key, value, Window(4), dropout_p=0.5)
    assert plan.rejected["blockwise"] == "it draws other pairs for dropout"
    with pytest.raises(RuntimeError, match="it computes windows, and topk-3 is another method"):
        dynattn.attention(query, key, value, dynattn.TopK(k=3), backend="blockwise")
