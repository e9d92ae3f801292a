"""The CUDA kernels on a device against the definition in float64, over the awkward sizes, masks, strides and values.

Queries and keys are small integers, so that every score is exact and the choice, ties included, is the same in any
arithmetic; then the counts must be equal and the output's error follows from rounding alone:

    error ≤ 2 · error of the same computation in the same dtype by plain PyTorch + half a unit in the last place
"""

import math

import pytest
import torch
from torch import Tensor

from dynattn import NM, attention, explain
from dynattn.methods.nm import choose
from dynattn.reference import pairs as reference

HALF = (torch.bfloat16, torch.float16)
METHODS = (
    NM(1, 2), NM(2, 4), NM(1, 2, window=20, sinks=3), NM(2, 4, window=70),
    NM(1, 2, stride=16), NM(2, 4, stride=16, window=20), NM(1, 1),
)  # fmt: skip
LENGTHS = ((1, 1), (2, 3), (3, 4), (63, 63), (63, 64), (111, 384), (384, 111), (129, 130), (1, 4096), (300, 2), (5, 0))
HEAD_DIMS = ((8, 8), (32, 32), (64, 64), (80, 80), (96, 64), (128, 128), (40, 72), (192, 192), (256, 256))


def integers(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator).to(dtype).cuda()


def inputs(
    q_len: int, kv_len: int, head_dim: int = 64, value_dim: int = 0, batch: int = 2, heads: int = 4, kv_heads: int = 2,
    dtype: torch.dtype = torch.bfloat16, seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    value = torch.randn(
        batch, kv_heads, kv_len, value_dim or head_dim, generator=torch.Generator().manual_seed(seed + 2)
    )
    return (
        integers(batch, heads, q_len, head_dim, seed=seed, dtype=dtype),
        integers(batch, kv_heads, kv_len, head_dim, seed=seed + 1, dtype=dtype),
        value.to(dtype).cuda(),
    )


def plain(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The same computation in the element type by plain PyTorch: operands rounded to it, sums in float32."""
    rounded = tf32 if query.dtype == torch.float32 else lambda x: x.to(query.dtype).float()
    offset = key.shape[2] - query.shape[2]
    s = reference.scores(query, key, mask, causal, query.shape[-1] ** -0.5, offset).masked_fill(~kept, -math.inf)
    top = s.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min) if s.shape[-1] else s.sum(-1, keepdim=True)
    weights = (s - top).exp()
    value = rounded(value).repeat_interleave(query.shape[1] // value.shape[1], 1)
    out = rounded(weights) @ value / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    return out.to(query.dtype)


def tf32(x: Tensor) -> Tensor:
    """float32 rounded to TF32, 10 bits of mantissa, ties away from 0."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def check(
    query: Tensor, key: Tensor, value: Tensor, method: NM, mask: Tensor | None = None, causal: bool = False
) -> None:
    """The kernel with and without kept mass (on Hopper these are two kernels) against the definition."""
    out, aux = attention(query, key, value, method, attn_mask=mask, causal=causal, backend="cuda", return_aux=True)
    alone = attention(query, key, value, method, attn_mask=mask, causal=causal, backend="cuda")
    exact_mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    right = reference.forward(query.double(), key.double(), value.double(), method, exact_mask, causal)
    offset = key.shape[2] - query.shape[2]
    s = reference.scores(query.double(), key.double(), exact_mask, causal, query.shape[-1] ** -0.5, offset)
    of_plain = plain(query, key, value, choose(s, method, offset), mask, causal)
    bound = 2 * largest(of_plain.double() - right.out) + torch.finfo(query.dtype).eps / 2 * largest(right.out)
    assert largest(out.double() - right.out) <= bound
    assert largest(alone.double() - right.out) <= bound
    dead = right.logsumexp == -math.inf
    assert torch.equal(aux.logsumexp == -math.inf, dead)
    assert (out[dead] == 0).all()
    assert (alone[dead] == 0).all()
    torch.testing.assert_close(aux.logsumexp[~dead].double(), right.logsumexp[~dead], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(aux.kept_mass.double(), right.kept_mass, rtol=1e-5, atol=1e-5)
    density = right.kept.sum(-1) / right.allowed.sum(-1).clamp(min=1)
    torch.testing.assert_close(aux.density, density.masked_fill(right.allowed.sum(-1) == 0, 1.0).float())


def largest(x: Tensor) -> float:
    """The largest absolute value; infinite where there is a NaN."""
    top = x.abs().max().item() if x.numel() else 0.0
    return math.inf if math.isnan(top) else top


def poison() -> None:
    """Fills the allocator's free blocks with NaN, so that an element that a kernel forgets to write shows."""
    blocks = [torch.full((1 << size,), math.nan, device="cuda") for size in range(4, 25) for _ in range(3)]
    del blocks


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(method: NM, q_len: int, kv_len: int, causal: bool) -> None:
    poison()
    check(*inputs(q_len, kv_len), method, causal=causal)


@pytest.mark.parametrize("method", [METHODS[0], METHODS[2], METHODS[5]], ids=lambda method: method.name)
@pytest.mark.parametrize(("head_dim", "value_dim"), HEAD_DIMS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_head_dims_and_dtypes(method: NM, head_dim: int, value_dim: int, dtype: torch.dtype) -> None:
    poison()
    check(*inputs(130, 200, head_dim, value_dim, dtype=dtype), method)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("kind", ["bool", "padding", "float32", "element", "other half", "empty rows"])
@pytest.mark.parametrize("causal", [False, True])
def test_masks(method: NM, kind: str, causal: bool) -> None:
    query, key, value = inputs(100, 164, batch=3)
    generator = torch.Generator().manual_seed(5)
    if kind == "padding":
        mask = torch.arange(164) < torch.tensor([164, 90, 1]).view(3, 1, 1, 1)
    elif kind in ("bool", "empty rows"):
        mask = torch.rand(3, 4, 100, 164, generator=generator) > (0.3 if kind == "bool" else 0.99)
    else:
        mask = torch.randint(-8, 9, (1, 4, 100, 164), generator=generator) / 4
        mask[torch.rand(mask.shape, generator=generator) < 0.2] = -math.inf
        mask = mask.to({"float32": torch.float32, "element": torch.bfloat16, "other half": torch.float16}[kind])
    check(query, key, value, method, mask.cuda(), causal)


@pytest.fixture
def tf32_is_allowed():
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("tf32_is_allowed")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(("q_len", "kv_len", "head_dim"), [(1, 3, 32), (111, 384, 64), (130, 65, 128), (70, 200, 72)])
@pytest.mark.parametrize("masked", [False, True])
def test_float32_by_tf32(method: NM, q_len: int, kv_len: int, head_dim: int, masked: bool) -> None:
    poison()
    query, key, value = inputs(q_len, kv_len, head_dim, dtype=torch.float32)
    mask = torch.rand(q_len, kv_len, generator=torch.Generator().manual_seed(3)).cuda() > 0.3 if masked else None
    assert explain(query, key, value, NM(1, 2)).backend == "cuda"
    check(query, key, value, method, mask, causal=masked)


def test_float32_is_not_rounded_where_it_must_not_be() -> None:
    query, key, value = inputs(64, 64, dtype=torch.float32)
    plan = explain(query, key, value, NM(1, 2))
    assert plan.backend == "reference"
    assert "set_float32_matmul_precision" in plan.rejected["cuda"]


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: method.name)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_queries(method: NM, kv_heads: int) -> None:
    check(*inputs(70, 130, kv_heads=kv_heads), method, causal=True)


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: method.name)
def test_strides(method: NM) -> None:
    query, key, value = inputs(130, 130, kv_heads=4)
    transposed = query, key, value = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    packed = torch.cat([query, key, value], -1)  # rows of 3 · 64, as one projection gives them
    expanded = [query, key[:, :1].expand(-1, 4, -1, -1), value[:, :1].expand(-1, 4, -1, -1)]
    columns = [x.mT.contiguous().mT for x in (query, key, value)]
    off = [torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape) for x in (query, key, value)]
    for one in (transposed, packed.split(64, -1), expanded, columns, off):
        check(one[0], one[1], one[2], method)
    assert attention(query, key, value, method, backend="cuda").transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: method.name)
@pytest.mark.parametrize("scale", [-0.25, 2.0, 1e-3])
def test_scales(method: NM, scale: float) -> None:
    query, key, value = inputs(65, 128)
    got = attention(query, key, value, method, scale=scale, backend="cuda")
    right = attention(query.double(), key.double(), value.double(), method, scale=scale, backend="reference")
    assert largest(got.double() - right) <= 2**-7 * largest(right)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_the_rows_that_it_touches_and_no_others(method: NM, where: str, bad: float) -> None:
    query, key, value = inputs(70, 132, heads=2)
    mask = torch.ones(70, 132, dtype=torch.bool, device="cuda")
    mask[:35, 77] = False  # the bad key is hidden from half of the rows
    {"query": query, "key": key, "value": value}[where][0, 0, 33 if where == "query" else 77, 5] = bad
    got = attention(query, key, value, method, attn_mask=mask, backend="cuda")
    right = attention(query.double(), key.double(), value.double(), method, attn_mask=mask, backend="reference")
    assert torch.equal(got.isfinite(), right.isfinite())
    finite = right.isfinite()
    assert largest((got.double() - right)[finite]) <= 2**-6 * largest(right[finite])


def test_near_ties_aside_random_inputs_agree() -> None:
    """Scores that are not exact: rows whose smallest gap between kept and dropped exceeds rounding must agree."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 512, 128, generator=generator).bfloat16().cuda() for _ in range(3))
    got = attention(query, key, value, NM(2, 4), backend="cuda")
    right = reference.forward(query.double(), key.double(), value.double(), NM(2, 4))
    s = reference.scores(query.double(), key.double(), None, False, 128**-0.5).unflatten(-1, (-1, 4)).sort(-1).values
    clear = (s[..., 2] - s[..., 1]).amin(-1) > 1e-5
    assert clear.float().mean() > 0.9
    error = (got.double() - right.out)[clear].norm() / right.out[clear].norm()
    assert error < 4e-3


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.name)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_same_inputs_give_the_same_bits(method: NM, head_dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 8, 1024, head_dim, generator=generator).bfloat16().cuda() for _ in range(3))
    first = attention(query, key, value, method, causal=True, backend="cuda", return_aux=True)
    for _ in range(20):
        again = attention(query, key, value, method, causal=True, backend="cuda", return_aux=True)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1].logsumexp, first[1].logsumexp)
        alone = attention(query, key, value, method, causal=True, backend="cuda")
        assert torch.equal(alone, attention(query, key, value, method, causal=True, backend="cuda"))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_dense_goes_to_sdpa_and_the_rest_to_the_reference(dtype: torch.dtype) -> None:
    query, key, value = inputs(64, 64, dtype=dtype)
    assert explain(query, key, value, NM(1, 2)).backend == "cuda"
    assert explain(query, key, value, NM(2, 2)).backend == "sdpa"
    odd = explain(query, key, value, NM(3, 8))
    assert odd.backend == "reference"
    assert "compute 1:2 and 2:4, not 3:8" in odd.rejected["cuda"]
    dense = attention(query, key, value, NM(2, 2)).double()
    right = attention(query.double(), key.double(), value.double(), NM(2, 2), backend="reference")
    assert largest(dense - right) <= 2**-7 * largest(right)
