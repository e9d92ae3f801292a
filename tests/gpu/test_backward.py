"""The backward kernels on a device: gradients against the definition in float64, the forward's choice, the same bits.

Queries and keys are small integers, so that every score is exact and the choice, ties included, is the same in any
arithmetic; then a gradient's error follows from rounding alone:

    error ≤ 2 · error of the same computation in the same dtype by plain PyTorch + half a unit in the last place
"""

import math

import pytest
import torch
from torch import Tensor

from dynattn import NM, attention
from dynattn.kernels import cuda
from dynattn.kernels.pattern import Pattern
from dynattn.maths import dropout
from dynattn.methods.nm import choose
from dynattn.reference import pairs as reference

METHODS = (NM(1, 2), NM(2, 4), NM(1, 2, window=20, sinks=3), NM(2, 4, stride=16))
LENGTHS = ((1, 1), (63, 65), (65, 1), (111, 384), (384, 111), (130, 129), (1, 1024), (5, 0))
SEED = -(3 << 40) - 5  # of dropout; both of its words matter
HEAD_DIMS = ((8, 8), (32, 32), (64, 64), (80, 96), (128, 128), (192, 192), (256, 256))


def integers(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).cuda()


def inputs(
    q_len: int, kv_len: int, head_dim: int = 64, value_dim: int = 0, batch: int = 2, heads: int = 4, kv_heads: int = 2,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        integers(batch, heads, q_len, head_dim, seed=0, dtype=dtype),
        integers(batch, kv_heads, kv_len, head_dim, seed=1, dtype=dtype),
        normal(batch, kv_heads, kv_len, value_dim or head_dim, seed=2, dtype=dtype),
    )


def by_kernels(
    tensors: tuple[Tensor, Tensor, Tensor], incoming: tuple[Tensor, Tensor], method: NM, mask: Tensor | None = None,
    causal: bool = False, scale: float = 0.125, mask_gradient: bool = False, dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """out, logsumexp and the gradients, into memory that held NaN."""
    query, key, value = tensors
    pattern = Pattern.of(method, causal, scale)._replace(dropout_p=dropout_p)
    seed = torch.tensor(SEED, device="cuda") if dropout_p else None
    out = torch.full((*query.shape[:3], value.shape[3]), math.nan, dtype=query.dtype, device="cuda")
    logsumexp = torch.full(query.shape[:3], math.nan, device="cuda")
    cuda.nm_forward(query, key, value, mask, out, logsumexp, None, None, None, pattern, for_backward=True, seed=seed)
    gradients = [torch.full_like(x, math.nan, memory_format=torch.contiguous_format) for x in tensors]
    d_mask = torch.full((*query.shape[:3], key.shape[2]), math.nan, device="cuda") if mask_gradient else None
    d_query, d_key, d_value = gradients
    cuda.nm_backward(*incoming, query, key, value, mask, out, logsumexp, d_query, d_key, d_value, d_mask, pattern, seed)
    return out, logsumexp, gradients if d_mask is None else [*gradients, d_mask]


def plain(
    tensors: tuple[Tensor, Tensor, Tensor], incoming: tuple[Tensor, Tensor], kept: Tensor, s: Tensor, out: Tensor,
    scale: float, drops: Tensor | float,
) -> list[Tensor]:  # fmt: skip
    """The same computation by plain PyTorch: P and dS rounded to the element type, sums in float32."""
    query, key, value = tensors
    grad_out, grad_logsumexp = incoming
    heads, kv_heads, dtype = query.shape[1], key.shape[1], query.dtype
    weights = s.float().masked_fill(~kept, -math.inf).softmax(-1).where(kept, 0.0)
    k, v = (x.float().repeat_interleave(heads // kv_heads, 1) for x in (key, value))
    row = (grad_out.float() * out.float()).sum(-1) - grad_logsumexp
    d_scores = (weights * (drops * (grad_out.float() @ v.mT) - row.unsqueeze(-1))).where(kept, 0.0)
    rounded = d_scores.to(dtype).float()
    d_key, d_value = scale * (rounded.mT @ query.float()), (weights * drops).to(dtype).float().mT @ grad_out.float()
    grouped = [x.unflatten(1, (kv_heads, -1)).sum(2).to(dtype) for x in (d_key, d_value)]
    return [(scale * (rounded @ k)).to(dtype), *grouped, d_scores]


def check(
    tensors: tuple[Tensor, Tensor, Tensor], method: NM, mask: Tensor | None = None, causal: bool = False,
    scale: float = 0.125, mask_gradient: bool = False, dropout_p: float = 0.0,
) -> None:  # fmt: skip
    query, key, value = tensors
    shape = (*query.shape[:3], value.shape[3])
    incoming = normal(*shape, seed=5, dtype=query.dtype), normal(*shape[:3], seed=6, dtype=torch.float32)
    out, _, got = by_kernels(tensors, incoming, method, mask, causal, scale, mask_gradient, dropout_p)
    drops = factors(query, key, dropout_p)
    exact_mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    exact = query.double(), key.double(), value.double()
    grad_out, grad_logsumexp = (x.double() for x in incoming)
    want = reference.backward(grad_out, grad_logsumexp, *exact, method, exact_mask, causal, scale, drops=drops)
    offset = key.shape[2] - query.shape[2]
    s = reference.scores(exact[0], exact[1], exact_mask, causal, scale, offset)
    kept = choose(s, method, offset)
    near = plain(tensors, incoming, kept, s, out, scale, 1.0 if drops is None else drops)
    for name, mine, right, of_plain in zip(("query", "key", "value", "mask"), got, want, near, strict=False):
        bound = 2 * largest(of_plain.double() - right) + torch.finfo(mine.dtype).eps / 2 * largest(right)
        assert largest(mine.double() - right) <= bound, name


def factors(query: Tensor, key: Tensor, dropout_p: float) -> Tensor | None:
    """The factors of dropout, (batch, heads, q_len, kv_len)."""
    if not dropout_p:
        return None
    batch, heads, q_len, _ = query.shape
    return dropout.factors(SEED, dropout_p, batch, heads, range(q_len), key.shape[2], query.device)


def largest(x: Tensor) -> float:
    """The largest absolute value; infinite where there is a NaN."""
    top = x.abs().max().item() if x.numel() else 0.0
    return math.inf if math.isnan(top) else top


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(method: NM, q_len: int, kv_len: int, causal: bool) -> None:
    check(inputs(q_len, kv_len), method, causal=causal)


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.name)
@pytest.mark.parametrize(("head_dim", "value_dim"), HEAD_DIMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_head_dims_and_dtypes(method: NM, head_dim: int, value_dim: int, dtype: torch.dtype) -> None:
    tensors = inputs(130, 200, head_dim, value_dim, dtype=dtype)
    reason = cuda.cannot_backward(dtype, method, head_dim, value_dim, tensors[0].device)
    if reason is not None:
        pytest.skip(reason)
    check(tensors, method)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("kind", ["bool", "padding", "float32", "element", "empty rows"])
@pytest.mark.parametrize("causal", [False, True])
def test_masks(method: NM, kind: str, causal: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    if kind == "padding":
        mask = torch.arange(164) < torch.tensor([164, 90, 1]).view(3, 1, 1, 1)
    elif kind in ("bool", "empty rows"):
        mask = torch.rand(3, 4, 100, 164, generator=generator) > (0.3 if kind == "bool" else 0.99)
    else:
        mask = torch.randint(-8, 9, (1, 4, 100, 164), generator=generator) / 4
        mask[torch.rand(mask.shape, generator=generator) < 0.2] = -math.inf
        mask = mask.to(torch.float32 if kind == "float32" else torch.bfloat16)
    check(inputs(100, 164, batch=3), method, mask.cuda(), causal, mask_gradient=mask.is_floating_point())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_rows_whose_logsumexp_is_rounded(method: NM, head_dim: int, dropout_p: float) -> None:
    """By their products, and by a bias: nothing is left in it of the logarithm of their number."""
    query, key, value = inputs(130, 192, head_dim)
    query[..., 0], query[:, :, 3::7], key[..., 0], key[:, :, 2::23, 0] = 0, 0, 181 << 7, 182 << 7
    mask = torch.zeros(130, 192, device="cuda")
    mask[10::14], mask[17::14] = torch.finfo(torch.float32).min, -1e9
    check((query, key, value), method, mask, dropout_p=dropout_p, mask_gradient=True)
    query[:, :, 3::14, 0], query[:, :, 10::14, 0] = 45 << 10, -(61 << 10)
    check((query, key, value), method, causal=True, scale=1.0, dropout_p=dropout_p)


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_grouped_queries(kv_heads: int) -> None:
    check(inputs(70, 300, heads=8, kv_heads=kv_heads), NM(1, 2), causal=True)


def test_a_negative_scale() -> None:
    check(inputs(70, 130), NM(2, 4), scale=-0.25)


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.name)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_same_inputs_give_the_same_bits(method: NM, head_dim: int) -> None:
    tensors = tuple(normal(2, 4, 1024, head_dim, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    query, key, value = tensors
    incoming = normal(*query.shape, seed=5, dtype=torch.bfloat16), torch.zeros(2, 4, 1024, device="cuda")
    _, _, first = by_kernels((query, key, value), incoming, method, causal=True)
    for _ in range(10):
        _, _, again = by_kernels((query, key, value), incoming, method, causal=True)
        assert all(torch.equal(one, other) for one, other in zip(again, first, strict=True))


@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4), NM(1, 2, window=3)], ids=lambda method: method.name)
@pytest.mark.parametrize("near_ties", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_choice_is_the_forwards(method: NM, near_ties: bool, head_dim: int) -> None:
    """With unit matrices for the values and the output's gradient, out is P and the value's gradient its transpose."""
    heads = 64
    period = head_dim // method.m if near_ties else head_dim
    query = normal(1, heads, 64, period, seed=1, dtype=torch.bfloat16).repeat(1, 1, 1, head_dim // period)
    first = normal(1, heads, 64 // method.m if near_ties else 64, head_dim, seed=2, dtype=torch.bfloat16)
    key = torch.stack([first.roll(i * period, -1) for i in range(head_dim // period)], 3).flatten(2, 3)
    eye = torch.eye(64, head_dim, dtype=torch.bfloat16, device="cuda").expand(1, heads, -1, -1).contiguous()
    incoming = eye, torch.zeros(1, heads, 64, device="cuda")
    out, _, gradients = by_kernels((query, key, eye), incoming, method, scale=1 / 128)
    assert torch.equal(gradients[2][..., :64].mT > 0, out[..., :64] > 0)
    if near_ties:
        assert (out[..., :: method.m] == 0).any(), "in exact arithmetic the first of a group is kept"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kind", ["none", "bool", "float32"])
def test_dropout(method: NM, head_dim: int, kind: str) -> None:
    bias = torch.randint(-8, 9, (1, 4, 130, 201), generator=torch.Generator().manual_seed(5)).cuda() / 4
    mask = {"none": None, "bool": bias > -1, "float32": bias}[kind]
    check(inputs(130, 201, head_dim), method, mask, causal=True, mask_gradient=kind == "float32", dropout_p=0.3)


@pytest.mark.parametrize("method", [*METHODS, NM(1, 1)], ids=lambda method: method.name)
def test_the_dropped_pairs_are_the_definitions(method: NM) -> None:
    """With unit matrices for the values and the output's gradient, out is P and the value's gradient its transpose."""
    query, key = (integers(2, 4, 127, 128, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    eye = torch.eye(127, 128, dtype=torch.bfloat16, device="cuda").expand(2, 4, -1, -1).contiguous()
    drops = factors(query, key, 0.3)
    assert drops is not None
    right = reference.attend(query, key, eye, method, None, True, 1 / 512).kept & (drops > 0)
    incoming = eye, torch.zeros(2, 4, 127, device="cuda")
    out, _, gradients = by_kernels((query, key, eye), incoming, method, causal=True, scale=1 / 512, dropout_p=0.3)
    assert torch.equal(out[..., :127] > 0, right)
    assert torch.equal(gradients[2][..., :127].mT > 0, right)


def test_dropout_in_a_cuda_graph() -> None:
    """The seed is read when the graph is replayed."""
    query, key, value = inputs(128, 256)
    leaves, seed = [x.requires_grad_() for x in (query, key, value)], torch.tensor(1, device="cuda")

    def step() -> tuple[Tensor, ...]:
        out = attention(query, key, value, NM(1, 2), backend="cuda", dropout_p=0.2, seed=seed)
        return out, *torch.autograd.grad(out, leaves, torch.ones_like(query))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for number in (2, 3):
        seed.fill_(number)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(got, want) for got, want in zip(captured, step(), strict=True))


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: method.name)
def test_through_the_operator(method: NM) -> None:
    tensors = inputs(130, 200)
    leaves = [x.clone().requires_grad_() for x in tensors]
    exact = [x.double().requires_grad_() for x in tensors]
    for (query, key, value), backend in ((leaves, "cuda"), (exact, "reference")):
        attention(query, key, value, method, causal=True, backend=backend).double().square().sum().backward()
    for leaf, right in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert right.grad is not None
        assert (leaf.grad.double() - right.grad).norm() / right.grad.norm() < 1e-2


def test_in_a_cuda_graph() -> None:
    query, key, value = inputs(128, 256)
    leaves = [x.requires_grad_() for x in (query, key, value)]

    def step() -> tuple[Tensor, ...]:
        out = attention(query, key, value, NM(1, 2), backend="cuda")
        return torch.autograd.grad(out, leaves, torch.ones_like(query))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        right = [x.clone() for x in step()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(got, want) for got, want in zip(captured, right, strict=True))
