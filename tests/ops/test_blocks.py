"""Block top-k by the kernels against its definition: the choice by pooled sums, the route, gradients, compilers."""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dynattn
from dynattn import BlockBound, BlockMass, BlockSkip, BlockTopK
from dynattn.kernels import cpu
from dynattn.maths import estimate, pooled
from dynattn.maths.estimate import Input
from dynattn.methods import Rows, parse
from dynattn.methods.blocks import ESTIMATES, Blocks
from dynattn.ops.blocks import block_attention
from dynattn.reference import pairs as reference
from tests.covering import half
from tests.whole_numbers import inputs

LENGTHS = [(1, 1), (15, 16), (17, 64), (64, 17), (65, 63), (130, 130), (63, 130), (5, 300), (200, 72)]
SIDES = [8, 16, 48, 64, 100]
MASKS = ["none", "padding", "by head", "one for all"]

needs_kernels = pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")


def padding(kind: str, kv_len: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(2)
    return {
        "none": None,
        "padding": torch.arange(kv_len) < torch.tensor([kv_len, kv_len // 2])[:, None, None, None],
        "by head": torch.rand(2, 4, 1, kv_len, generator=generator) < 0.6,
        "one for all": torch.rand(kv_len, generator=generator) < 0.3,
    }[kind]


def by_query(kind: str, q_len: int, kv_len: int) -> Tensor:
    """A mask that has a row for each query: bool, or added."""
    allowed = torch.rand(2, 1, q_len, kv_len, generator=torch.Generator().manual_seed(3)) < 0.7
    bias = torch.randint(-4, 5, (4, q_len, kv_len), generator=torch.Generator().manual_seed(4)).float()
    return allowed if kind == "pairs" else bias.masked_fill(~allowed[0], -math.inf)


def defined(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, method: Blocks) -> Tensor:
    """The choice by the scores of all pairs, in float64: (batch, heads, q_len, kv_len)."""
    offset, key = key.shape[2] - query.shape[2], key.repeat_interleave(2, 1).double()
    s = reference.scores(query.double(), key, mask, causal, 0.5, offset)
    return method.choose(s, Rows(query, key, offset, 0.5)) & (s != -math.inf)


def spread(blocks: Tensor, size: int, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Blocks as the pairs that they keep."""
    allowed = reference.scores(query, key, mask, causal, 0.0, key.shape[2] - query.shape[2]) != -math.inf
    pairs = blocks.repeat_interleave(size, 2).repeat_interleave(size, 3)
    return pairs[:, :, : query.shape[2], : key.shape[2]] & allowed


@pytest.mark.parametrize(
    ("lengths", "kind", "causal", "at_once"), half(LENGTHS, MASKS, [False, True], [estimate.AT_ONCE, 100])
)
def test_pooled_sums_choose_what_the_scores_choose(
    lengths: tuple[int, int], kind: str, causal: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "AT_ONCE", at_once)  # a few rows of blocks at a time
    query, key, _ = inputs(*lengths)
    mask = padding(kind, lengths[1])
    unforced: dict[str, Any] = {"window": 0, "sinks": 0, "floor": 0}
    for size, ratio, forced in itertools.product(SIDES, (0.25, 0.5, 1e-6), ({}, unforced)):
        method = BlockTopK(ratio, size, **forced)
        blocks = method.choose_blocks(query, key, mask, causal, 0.5)
        got = spread(blocks, size, query, key, mask, causal)
        assert torch.equal(got, defined(query, key, mask, causal, method)), method


@pytest.mark.parametrize(
    ("lengths", "kind", "causal", "at_once", "by"),
    half(LENGTHS, MASKS, [False, True], [estimate.AT_ONCE, 100], sorted(set(ESTIMATES) - {"mean"})),
)
def test_estimates_of_inputs_are_those_of_scores(
    lengths: tuple[int, int], kind: str, causal: bool, at_once: int, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "AT_ONCE", at_once)
    query, key, _ = (x.double() + torch.rand(x.shape, dtype=torch.float64) for x in inputs(*lengths))
    mask, offset = padding(kind, lengths[1]), lengths[1] - lengths[0]
    key[0, 0, -1] = math.inf if kind == "padding" and lengths[1] == 16 else key[0, 0, -1]
    s = reference.scores(query, key, mask, causal, 0.5, offset)
    for size in (16, 48, 64):
        want, some = ESTIMATES[by].of_scores(s, Rows(query, key.repeat_interleave(2, 1), offset, 0.5), size)
        rows = 0
        for at, value, its in ESTIMATES[by].of_input(Input(query, key, mask, causal, 0.5), size):
            assert torch.equal(its.expand_as(value), some[:, :, at])
            torch.testing.assert_close(value.where(its, 0.0), want[:, :, at].where(some[:, :, at], 0.0), equal_nan=True)
            rows = at.stop
        assert rows == want.shape[2]


class _Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            self.found = max(self.found, x.untyped_storage().size() // x.element_size() if torch.is_tensor(x) else 0)
        return out


@pytest.mark.parametrize("name", [*(f"blocktopk-0.25-b16-{by}" for by in sorted(ESTIMATES)), "blockbound-0.9-b16"])
@pytest.mark.parametrize("causal", [False, True])
def test_nothing_of_the_size_of_all_pairs_is_formed(name: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "AT_ONCE", 1 << 13)
    query, key = torch.randn(1, 2, 256, 8), torch.randn(1, 1, 256, 8)
    with _Largest() as largest:
        cast(Blocks, parse(name)).choose_blocks(query, key, None, causal, 0.5)
    assert 0 < largest.found <= 2 * 256 * 256 / 8


@pytest.mark.parametrize("by", sorted(ESTIMATES))
@pytest.mark.parametrize("kind", [BlockTopK, BlockMass])
@pytest.mark.parametrize("causal", [False, True])
def test_kernels_choose_what_the_definition_chooses(by: str, kind: type[Blocks], causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, h, n, 8, generator=generator, dtype=torch.float64) for h, n in ((4, 130), (2, 170)))
    for size, mask in itertools.product((16, 64), (None, torch.arange(170) < 120)):
        method = kind(0.4, size, by)  # pyright: ignore[reportCallIssue]
        got = spread(method.choose_blocks(query, key, mask, causal, 0.5), size, query, key, mask, causal)
        assert torch.equal(got, defined(query, key, mask, causal, method)), (size, mask is None)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("at_once", [estimate.AT_ONCE, 100])
def test_proofs_from_inputs_are_those_from_scores(
    lengths: tuple[int, int], kind: str, causal: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "AT_ONCE", at_once)
    query, key, _ = (x.double() + torch.rand(x.shape, dtype=torch.float64) for x in inputs(*lengths))
    mask, offset = padding(kind, lengths[1]), lengths[1] - lengths[0]
    s = reference.scores(query, key, mask, causal, 0.5, offset)
    for method in (BlockBound(0.9, 16), BlockBound(0.9, 48, window=1, sinks=0)):
        want, some = method.of_scores(s, Rows(query, key.repeat_interleave(2, 1), offset, 0.5))
        forced = method.near(range(want.shape[2]), offset, *lengths)  # whose values are of no use
        rows = 0
        for at, value, its in method.of_input(Input(query, key, mask, causal, 0.5)):
            assert torch.equal(its.expand_as(value), some[:, :, at])
            others = some[:, :, at] & ~forced[at]
            torch.testing.assert_close(value.where(others, 0.0), want[:, :, at].where(others, 0.0))
            rows = at.stop
        assert rows == want.shape[2]


def test_pooled_sums_are_the_means_of_the_scores() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 70, 8, dtype=torch.float64), torch.randn(1, 2, 131, 8, dtype=torch.float64)
    for mask, causal in itertools.product((None, torch.rand(131) < 0.5), (False, True)):
        s = reference.scores(query, key, mask, causal, 0.3, 61)
        for size in (8, 16, 64):
            want, some = pooled.of_scores(s, size)
            for rows, mean, its in pooled.of_input(Input(query, key, mask, causal, 0.3), size):
                assert torch.equal(its.expand_as(mean), some[:, :, rows])
                torch.testing.assert_close(mean.where(its, 0.0), want[:, :, rows])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at_once", [estimate.AT_ONCE, 100])
def test_inputs_that_are_not_finite_go_by_the_scores(bad: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "AT_ONCE", at_once)
    query, key, _ = inputs(70, 90)
    key[0, 1, 33, 2] = bad
    method, mask = BlockTopK(0.25, 16), torch.arange(90) != 60
    key[1, 1, 60] = math.nan  # which nobody may attend
    for causal in (False, True):
        blocks = method.choose_blocks(query, key, mask, causal, 0.5)
        got = spread(blocks, 16, query, key.nan_to_num(0, 0, 0), mask, causal)
        want = defined(query, key, mask, causal, method)
        allowed = reference.scores(query, key, mask, causal, 0.5, 20) != -math.inf  # a score may be -inf itself
        assert torch.equal(got & allowed, want)


@needs_kernels
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("causal", [False, True])
def test_definition_with_the_certificate(lengths: tuple[int, int], kind: str, causal: bool) -> None:
    (query, key, value), mask = inputs(*lengths), padding(kind, lengths[1])
    exactly = [x.double() for x in (query, key, value)]
    for size in SIDES:
        method = BlockTopK(0.25, size)
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
        torch.testing.assert_close(alone, out)


@needs_kernels
def test_rows_that_keep_nothing_give_zero() -> None:
    """The second block of keys scores higher than the first, and the first 16 queries see none of its keys."""
    query, key, value = (torch.ones(1, 1, 64, 8) for _ in range(3))
    key[:, :, :32] = -1.0
    key[:, :, 48:] = 2.0
    method = BlockTopK(0.1, 32, window=0, sinks=0)
    out, aux = dynattn.attention(query[:, :, :48], key, value, method, causal=True, return_aux=True)
    none = aux.logsumexp[0, 0] == -math.inf
    assert none.tolist() == [i < 16 for i in range(32)] + [False] * 16
    assert not out[0, 0, none].any()
    assert not aux.kept_mass[0, 0, none].any()
    assert out[0, 0, ~none].all()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_that_of_the_same_arithmetic(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, 200, 32, generator=generator).to(dtype) for _ in range(3))
    method = BlockTopK(0.25, 16)
    exact, plain = (
        dynattn.attention(query.to(kind), key.to(kind), value.to(kind), method, causal=True, backend="reference")
        for kind in (torch.float64, dtype)
    )
    got = dynattn.attention(query.mT.contiguous().mT, key, value, method, causal=True)
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max() + 1e-6


@needs_kernels
@pytest.mark.parametrize("lengths", [(130, 130), (63, 130), (5, 300), (200, 72)], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradients(lengths: tuple[int, int], dropout_p: float) -> None:
    for size, causal, kind in itertools.product((16, 64), (False, True), ("none", "padding", "pairs", "bias")):
        found = []
        for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
            query, key, value = (x.requires_grad_() for x in inputs(*lengths, dtype))
            mask = by_query(kind, *lengths) if kind in ("pairs", "bias") else padding(kind, lengths[1])
            out, aux = dynattn.attention(
                query, key, value, BlockTopK(0.3, size), attn_mask=mask, causal=causal, scale=0.5,
                backend=backend, dropout_p=dropout_p, seed=5 if dropout_p else None, return_aux=True,
            )  # fmt: skip
            loss = out.sin().sum() + aux.logsumexp.clamp(min=-1e3).square().sum() / 100
            found.append([x.double() for x in torch.autograd.grad(loss, (query, key, value))])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("method", [BlockTopK(0.3, 16), BlockMass(0.6, 16), BlockSkip(6.0)], ids=str)
def test_rows_of_scores_that_are_large_in_size(method: Any) -> None:
    """Nothing is left of the logarithm of their number in their logsumexp."""
    for size, backend in itertools.product((2.0**30, -(2.0**30)), ("cpu", "cpu-tiles-portable")):
        if backend != "cpu" and isinstance(method, BlockSkip):
            continue
        found = []
        narrow = torch.float32 if backend == "cpu" else torch.bfloat16
        for name, dtype in ((backend, narrow), ("reference", torch.float64)):
            query, key, value = inputs(20, 70, narrow)
            query[..., :1], query[..., 1:], key[..., 0] = size, 0, 1
            query[:, :, 10:, 0], key[:, :, 40:, 0] = 0, 1 - 2.0**-7
            tensors: Any = [x.to(dtype).requires_grad_() for x in (query, key, value)]
            out, aux = dynattn.attention(
                tensors[0], tensors[1], tensors[2], method, scale=0.5, backend=name, return_aux=True
            )
            gradients = torch.autograd.grad(out.sin().sum(), tensors[1:])
            found.append([x.double() for x in (*gradients, out, aux.kept_mass, aux.density)])
        unit = 1e-4 if backend == "cpu" else 2.0**-6
        size_of_dk = found[1][0].abs().max().item()
        torch.testing.assert_close(found[0][0] / size_of_dk, found[1][0] / size_of_dk, rtol=0, atol=unit)
        torch.testing.assert_close(found[0][1:], found[1][1:], rtol=unit, atol=unit)


@needs_kernels
def test_the_gradient_holds_the_forwards_blocks() -> None:
    """Near ties, which rounding decides: dV is nonzero for the very blocks that the output was made of."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(1, 1, 16, 32, generator=generator)
    key = torch.cat([base * (1 + 2e-7 * torch.randn(base.shape, generator=generator)) for _ in range(12)], 2)
    for _ in range(10):
        query = torch.randn(1, 1, 32, 32, generator=generator, requires_grad=True)
        value = torch.eye(192)[None, None].requires_grad_()
        out = dynattn.attention(query, key, value, BlockTopK(0.25, 16))
        (d_value,) = torch.autograd.grad(out.sum(), value)
        kept = out[0, 0].unflatten(1, (12, 16)).any(-1).any(0)
        assert torch.equal(d_value[0, 0].sum(-1).unflatten(0, (12, 16)).any(-1), kept)


@needs_kernels
@pytest.mark.parametrize(("masked", "aux", "dropout_p"), half([False, True], [False, True], [0.0, 0.4]))
def test_opcheck(masked: bool, aux: bool, dropout_p: float) -> None:
    tensors = [x.requires_grad_() for x in inputs(40, 50)]
    seed, mask = torch.tensor(3) if dropout_p else None, padding("padding", 50) if masked else None
    call = ("blocktopk-0.3-b16", False, 0.25, dropout_p)  # not causal: no row is empty, whose -inf opcheck adds up
    torch.library.opcheck(block_attention, (*tensors, mask, seed, *call, aux, True, "cpu"))
    query, key, value = (x.detach() for x in tensors)
    out, logsumexp, *_, blocks = block_attention(query, key, value, mask, seed, *call, False, True, "cpu")
    torch.library.opcheck(
        torch.ops.dynattn.block_attention_backward.default,
        (torch.ones_like(out), logsumexp, out, logsumexp, blocks, query, key, value, mask, seed, *call, "cpu"),
    )


@needs_kernels
def test_compiles_whole() -> None:
    tensors = [x.requires_grad_() for x in inputs(100, 100)]

    def step(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dynattn.attention(query, key, value, BlockTopK(0.25, 16), causal=True).square().sum()

    want = torch.autograd.grad(step(*tensors), tensors)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*tensors), tensors), want)


@needs_kernels
def test_compiled_functions_take_one_method_after_another() -> None:
    query, key, value = inputs(100, 100)

    def step(method: BlockTopK) -> Tensor:
        return dynattn.attention(query, key, value, method)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for method in (BlockTopK(0.25, 16), BlockTopK(0.5, 16), BlockTopK(0.5, 32), BlockTopK(0.5, 4)):
        torch.testing.assert_close(compiled(method), step(method))


@needs_kernels
def test_autocast_and_second_derivatives() -> None:
    query, key, value = (x.requires_grad_() for x in inputs(40, 40))
    with torch.autocast("cpu", torch.bfloat16):
        assert dynattn.attention(query, key, value, BlockTopK(0.5, 8)).dtype == torch.bfloat16
    (first,) = torch.autograd.grad(
        dynattn.attention(query, key, value, BlockTopK(0.5, 8)).sin().sum(), query, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="second derivatives are not offered"):
        first.sum().backward()


@needs_kernels
def test_what_autograd_saves_is_linear_but_for_the_blocks() -> None:
    query, key, value = (torch.randn(1, 2, 512, 16, requires_grad=True) for _ in range(3))
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        dynattn.attention(query, key, value, BlockTopK(0.25, 16))
    assert sum(saved) == 4 * query.numel() + 2 * 512 + 2 * 34 * 34


@needs_kernels
def test_routes() -> None:
    query, key, value = inputs(40, 40)
    plan = dynattn.explain(query, key, value, BlockTopK(0.5, 8), attn_mask=padding("by head", 40))
    assert plan.backend == "cpu"
    assert "dropped blocks skipped" in plan.reason
    sampled = BlockTopK(0.5, 8, "sampled")
    for mask in (torch.ones(40, 40, dtype=torch.bool), torch.zeros(40)):
        assert dynattn.explain(query, key, value, BlockTopK(0.5, 8), attn_mask=mask).backend == "cpu"
        for method in (sampled, BlockSkip(1.0, BlockTopK(0.5, 16, "sampled"))):
            plan = dynattn.explain(query, key, value, method, attn_mask=mask)
            assert plan.backend == "reference"
            assert "only under a mask that is bool and the same for all queries" in plan.rejected["cpu"]
            with pytest.raises(RuntimeError, match="only under a mask that is bool"):
                dynattn.attention(query, key, value, method, attn_mask=mask, backend="cpu")
    learned = torch.zeros(40, requires_grad=True)
    plan = dynattn.explain(query, key, value, BlockTopK(0.5, 8), attn_mask=learned)
    assert "the gradient of a mask is not made" in plan.rejected["cpu"]
    plan = dynattn.explain(query, key, value, BlockTopK(0.5, 7))
    assert plan.rejected["cpu"] == (
        "its kernels compute N:M attention, top-k, thresholds, mass and large blocks, and blocktopk-0.5-b7 is another "
        "method"
    )
    assert dynattn.explain(query.double(), key.double(), value.double(), BlockTopK(0.5, 8)).backend == "reference"


@needs_kernels
@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("by", sorted(ESTIMATES))
@pytest.mark.parametrize("kind", [BlockTopK, BlockMass])
def test_empty(shape: tuple[int, int, int, int], causal: bool, by: str, kind: type[Blocks]) -> None:
    batch, heads, q_len, kv_len = shape
    query = torch.randn(batch, heads, q_len, 8, requires_grad=True)
    key = torch.randn(batch, heads, kv_len, 8, requires_grad=True)
    method = kind(0.5, 16, by)  # pyright: ignore[reportCallIssue]
    chosen = method.choose_blocks(query, key, None, causal, 1.0)
    assert chosen.shape == (batch, heads, -(-q_len // 16), -(-kv_len // 16))
    dynattn.attention(query, key, key, method, causal=causal, backend="reference")
    out, aux = dynattn.attention(query, key, key, method, causal=causal, return_aux=True, backend="cpu")
    assert torch.equal(out, torch.zeros(batch, heads, q_len, 8))
    assert torch.equal(aux.kept_mass, torch.ones(batch, heads, q_len))
    for gradient in torch.autograd.grad(out.sum(), (query, key)):
        assert not gradient.any()


def test_a_method_of_whole_blocks_must_choose_them() -> None:
    query, key, _ = inputs(8, 8)
    with pytest.raises(NotImplementedError, match=r"topk-3 has no choice of whole blocks; define choose_blocks\(\)"):
        dynattn.TopK(k=3).choose_blocks(query, key, None, False, 1.0)


JOINED = (
    "nm-1-2&blocktopk-0.4-b16", "blocktopk-0.4-b64&nm-1-4-x16-w5-s3",
    "nm-2-4&blocktopk-0.5-b8&blocktopk-0.6-b8-sampled", "blocktopk-0.2-b16+blockmass-0.3-b16",
    "blocktopk-0.3-b16+window-16-s4",
)  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", JOINED)
@pytest.mark.parametrize("lengths", [(1, 1), (65, 63), (130, 130), (5, 300), (200, 72)], ids=str)
def test_joined_methods_run_in_the_kernel_that_skips_blocks(name: str, lengths: tuple[int, int]) -> None:
    method, (query, key, value) = parse(name), inputs(*lengths)
    assert dynattn.explain(query, key, value, method).backend == "cpu"
    exactly = [x.double() for x in (query, key, value)]
    for mask, causal in ((None, False), (None, True), (padding("by head", lengths[1]), True)):
        call: dict[str, Any] = {"attn_mask": mask, "causal": causal, "scale": 0.5, "return_aux": True}
        out, aux = dynattn.attention(query, key, value, method, **call)
        want, exact = dynattn.attention(exactly[0], exactly[1], exactly[2], method, backend="reference", **call)
        torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(aux.kept_mass.double(), exact.kept_mass, rtol=1e-5, atol=1e-5)
        assert torch.equal(aux.density, exact.density)


@needs_kernels
def test_joined_methods_on_tiles() -> None:
    query, key, value = inputs(70, 130, torch.bfloat16)
    method = parse("nm-1-2-x16&blocktopk-0.4-b64")
    tiles, exact = (
        dynattn.attention(
            query.to(dtype), key.to(dtype), value.to(dtype), method, causal=True, scale=0.5, backend=backend
        )
        for backend, dtype in (("cpu-tiles-portable", torch.bfloat16), ("reference", torch.float64))
    )
    torch.testing.assert_close(tiles.double(), exact, rtol=2e-2, atol=2e-2)


@needs_kernels
@pytest.mark.parametrize("name", [JOINED[1], JOINED[3]])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradients_of_joined_methods(name: str, dropout_p: float) -> None:
    found = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        query, key, value = (x.requires_grad_() for x in inputs(63, 130, dtype))
        out, aux = dynattn.attention(
            query, key, value, parse(name), causal=True, scale=0.5, backend=backend, dropout_p=dropout_p,
            seed=5 if dropout_p else None, return_aux=True,
        )  # fmt: skip
        loss = out.sin().sum() + aux.logsumexp.square().sum() / 100
        found.append([x.double() for x in torch.autograd.grad(loss, (query, key, value))])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_routes_of_joined_methods() -> None:
    query, key, value = inputs(40, 40)
    plan = dynattn.explain(query, key, value, parse("nm-1-2-x16-w64-s4&blocktopk-0.5-b64"))
    assert "dropped blocks skipped, nm-1-2-x16-w64-s4 in the kept ones" in plan.reason
    for name in (
        "nm-1-4-x16&blocktopk-0.5-b16",  # a group of keys lies in four blocks, and would choose otherwise in one
        "nm-1-2&nm-2-4&blocktopk-0.5-b16", "blocktopk-0.5-b16&blocktopk-0.5-b8", "blocktopk-0.5-b16+nm-1-2",
        "blocktopk-0.5-b16&nm-1-2+blocktopk-0.5-b16", "topk-3&threshold-0.1+window-5", "window-5&window-9-s2",
        "blocktopk-0.5-b16&window-9+window-5", "dsa-0.5-k0.25-int4-v4&window-9", "topk-3+window-5+window-4-s1",
    ):  # fmt: skip
        assert dynattn.explain(query, key, value, parse(name)).backend == "reference", name


@needs_kernels
def test_routes_beside_a_window() -> None:
    query, key, value = inputs(40, 40)
    for name, words in (
        ("blocktopk-0.5-b16+window-17-s4", "dropped blocks skipped, a window joined;"),
        ("blocktopk-0.5-b16-w0+window-16-s4", "dropped blocks skipped, a window joined;"),
        ("blocktopk-0.5-b16&window-64", "dropped blocks skipped, cut by a window;"),
        ("blocktopk-0.5-b16&nm-1-2+window-9", "dropped blocks skipped, nm-1-2 in the kept ones, a window joined;"),
        ("nm-1-2&window-9", ", nm-1-2, cut by a window;"),
        ("topk-3+window-5", "values of the kept ones read, a window joined;"),
    ):
        plan = dynattn.explain(query, key, value, parse(name))
        assert plan.backend == "cpu", name
        assert words in plan.reason
    added = torch.zeros(40, 40, requires_grad=True)
    for name in ("nm-1-2&window-9", "topk-3+window-5"):
        plan = dynattn.explain(query, key, value, parse(name), attn_mask=added)
        assert "the gradient of a mask is not made" in plan.rejected["cpu"]
