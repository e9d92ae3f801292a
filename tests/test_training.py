"""Attention in training: gradients through the public call, dropout, autocast, checkpointing, transforms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import dynattn
from dynattn import NM
from dynattn.kernels import cpu
from dynattn.methods import parse
from dynattn.methods.nm import choose
from dynattn.ops import nm
from dynattn.reference import pairs as reference

BACKENDS = ("cpu", "reference")


def inputs(q_len: int = 40, kv_len: int = 60, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys on a grid, where every backend chooses alike."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randint(-2, 3, (2, 4, q_len, 16), generator=generator).to(dtype)
    key = torch.randint(-2, 3, (2, 2, kv_len, 16), generator=generator).to(dtype)
    value = torch.randn(2, 2, kv_len, 16, generator=generator).to(dtype)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def loss(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    return dynattn.attention(query, key, value, NM(1, 2), **options).sin().sum()


def close(got, want, tolerance: float = 2e-5) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(40, 60), (1, 1, 40, 60), (4, 1, 60), (2, 1, 1, 60), (2, 4, 40, 60), (2, 1, 40, 60)])
@pytest.mark.parametrize("causal", [False, True])
def test_gradient_of_a_bias(shape: tuple[int, ...], causal: bool) -> None:
    tensors = inputs()
    bias = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(1)).float().requires_grad_()
    got, want = (
        torch.autograd.grad(loss(*tensors, attn_mask=bias, causal=causal, backend=backend), (*tensors, bias))
        for backend in BACKENDS
    )
    close(got, want)


@pytest.mark.parametrize("together", [1, 1 << 24], ids=["a head at a time", "all heads at once"])
@pytest.mark.parametrize("shape", [(1, 1, 40, 60), (1, 4, 40, 60), (2, 4, 40, 60), (2, 1, 1, 60)])
def test_gradient_of_a_bias_with_dropout(shape: tuple[int, ...], together: int, monkeypatch) -> None:
    """Heads whose gradients of scores are summed apart drop what they dropped in the forward."""
    monkeypatch.setattr(nm, "_SCORES_AT_ONCE", together)
    tensors = inputs()
    bias = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(1)).float().requires_grad_()
    got, want = (
        torch.autograd.grad(loss(*tensors, attn_mask=bias, dropout_p=0.4, seed=9, backend=backend), (*tensors, bias))
        for backend in BACKENDS
    )
    close(got, want)


def test_gradients_of_inputs_that_are_not_contiguous() -> None:
    query, key, value = inputs()
    want = torch.autograd.grad(loss(query, key, value), (query, key, value))
    turned = [x.detach().mT.contiguous().mT.requires_grad_() for x in (query, key, value)]
    close(torch.autograd.grad(loss(*turned), turned), want)
    out = dynattn.attention(query, key, value, NM(1, 2))
    close(
        torch.autograd.grad(out, (query, key, value), torch.ones(()).expand_as(out)),
        torch.autograd.grad(dynattn.attention(query, key, value, NM(1, 2)).sum(), (query, key, value)),
    )


@pytest.mark.parametrize("q_len", [1, 4])
def test_few_queries_in_training_choose_as_their_gradient_does(q_len: int) -> None:
    """Without a gradient the decoding path runs, which adds in another order; its output differs in rounding alone."""
    query, key, value = inputs(q_len, 300)
    with torch.no_grad():
        still = dynattn.attention(query, key, value, NM(1, 2))
    out = dynattn.attention(query, key, value, NM(1, 2))
    torch.testing.assert_close(out.detach(), still, rtol=1e-5, atol=1e-5)
    close(
        torch.autograd.grad(loss(query, key, value), (query, key, value)),
        torch.autograd.grad(loss(query, key, value, backend="reference"), (query, key, value)),
    )


@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4, stride=3), NM(2, 2), NM(3, 8, window=4)], ids=lambda m: m.name)
def test_dropout_is_the_same_on_every_backend(method: NM) -> None:
    tensors = inputs()
    results = []
    for backend in BACKENDS:
        out = dynattn.attention(*tensors, method, dropout_p=0.4, seed=11, causal=True, backend=backend)
        results.append((out, *torch.autograd.grad(out.sin().sum(), tensors)))
    close(*results)


def test_dropout_follows_its_seed() -> None:
    tensors = inputs()

    def draw(**options) -> Tensor:
        return dynattn.attention(*tensors, NM(1, 2), dropout_p=0.5, **options)

    assert torch.equal(draw(seed=1), draw(seed=torch.tensor(1)))
    assert not torch.equal(draw(seed=1), draw(seed=2))
    torch.manual_seed(0)
    first, second = draw(), draw()
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, draw())


def test_dropout_keeps_the_mean_and_the_logsumexp() -> None:
    query, key, value = (x.detach() for x in inputs(8, 16))
    plain, plain_aux = dynattn.attention(query, key, value, NM(1, 2), return_aux=True)
    runs = [dynattn.attention(query, key, value, NM(1, 2), dropout_p=0.3, seed=i, return_aux=True) for i in range(400)]
    assert all(torch.equal(aux.logsumexp, plain_aux.logsumexp) for _, aux in runs)
    outs = torch.stack([out for out, _ in runs])
    z = (outs.mean(0) - plain) / (outs.std(0) / 20).clamp(min=1e-6)
    assert z.abs().max() < 6


@pytest.mark.parametrize("dropout_p", [-0.1, 1.0, "half"])
def test_refuses_what_is_no_probability(dropout_p) -> None:
    with pytest.raises(ValueError, match="attention: dropout_p must be"):
        dynattn.attention(*inputs(), dropout_p=dropout_p)


@pytest.mark.parametrize("seed", [2**63, 1.5, torch.tensor([1, 2]), torch.tensor(1.0)])
def test_refuses_what_is_no_seed(seed) -> None:
    with pytest.raises(ValueError, match="attention: seed must be"):
        dynattn.attention(*inputs(), dropout_p=0.5, seed=seed)


def test_autocast_computes_as_pytorchs_attention_does() -> None:
    query, key, value = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = dynattn.attention(query, key, value, NM(1, 2))
        ours = torch.autograd.grad(loss(query, key, value), (query, key, value))
    halves = query, key, value = tuple(x.detach().bfloat16().requires_grad_() for x in (query, key, value))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, dynattn.attention(query, key, value, NM(1, 2)))
    assert [x.dtype for x in ours] == [torch.float32] * 3
    close(ours, [x.float() for x in torch.autograd.grad(loss(*halves), halves)])


def test_autocast_leaves_the_reference_in_float32() -> None:
    query, key, value = (x.detach().bfloat16() for x in inputs())
    plain = dynattn.attention(query, key, value, NM(1, 2), backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dynattn.attention(query, key, value, NM(1, 2), backend="reference"), plain)


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_activation_checkpointing_changes_nothing(dropout_p: float) -> None:
    tensors = inputs()

    def block(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return loss(query, key, value, dropout_p=dropout_p)

    torch.manual_seed(0)
    want = torch.autograd.grad(block(*tensors), tensors)
    torch.manual_seed(0)
    got = torch.autograd.grad(checkpoint(block, *tensors, use_reentrant=False), tensors)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_compiled_training_with_dropout_and_a_bias() -> None:
    tensors = inputs()
    bias = torch.zeros(40, 60, requires_grad=True)

    def step(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        return loss(query, key, value, attn_mask=bias, dropout_p=0.3, seed=5)

    want = torch.autograd.grad(step(*tensors, bias), (*tensors, bias))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    close(torch.autograd.grad(compiled(*tensors, bias), (*tensors, bias)), want)


def test_func_grad_and_vmap() -> None:
    query, key, value = (x.detach() for x in inputs())
    queries = torch.stack([query, query.flip(2), -query])
    bias = torch.randint(-2, 3, (4, 40, 60), generator=torch.Generator().manual_seed(1)).float()
    tensors = inputs()
    close(torch.func.grad(loss, argnums=(0, 1, 2))(query, key, value), torch.autograd.grad(loss(*tensors), tensors))

    def biased(query: Tensor, bias: Tensor) -> Tensor:
        return loss(query, key, value, attn_mask=bias, causal=True)

    gradient = torch.func.grad(biased, argnums=(0, 1))
    mapped = torch.func.vmap(gradient, in_dims=(0, None))(queries, bias)
    one_by_one = [gradient(x, bias) for x in queries]
    close(mapped, [torch.stack(x) for x in zip(*one_by_one, strict=True)])
    biases = torch.stack([bias, bias.flip(0)], dim=1)
    close(
        torch.func.vmap(gradient, in_dims=(None, 1))(query, biases),
        [torch.stack(x) for x in zip(*(gradient(query, b) for b in biases.unbind(1)), strict=True)],
    )
    outputs = torch.func.vmap(lambda x: dynattn.attention(x, key, value, NM(1, 2), return_aux=True)[1].kept_mass)(
        queries
    )
    want = [dynattn.attention(x, key, value, NM(1, 2), return_aux=True)[1].kept_mass for x in queries]
    close(outputs, want)


def test_what_is_not_offered_says_so() -> None:
    tensors = inputs()
    first = torch.autograd.grad(loss(*tensors), tensors, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not offered"):
        first[0].sum().backward()
    query, key, value = (x.detach() for x in tensors)
    with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
        torch.func.jvp(lambda q: loss(q, key, value), (query,), (query,))


def test_memory_of_training_grows_with_length_not_its_square() -> None:
    """What autograd saves: inputs, output and logsumexp."""
    query, key, value = (torch.randn(1, 2, 512, 16, requires_grad=True) for _ in range(3))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        dynattn.attention(query, key, value, NM(1, 2))
    assert sum(saved) == 4 * query.numel() + 2 * 512


def test_the_kernels_gradient_is_the_references() -> None:
    """And the reference's is autograd's through its own forward, the choice held fixed."""
    query, key, value = (x.detach().double().requires_grad_() for x in inputs(9, 14))
    s = reference.scores(query, key, None, False, 0.25)
    kept = choose(s.detach(), NM(1, 2))
    out = reference.forward(query, key, value, NM(1, 2), scale=0.25, kept=kept).out
    want = torch.autograd.grad(out.sin().sum(), (query, key, value))
    close(torch.autograd.grad(loss(query, key, value, scale=0.25), (query, key, value)), want, 1e-12)
    floats = [x.detach().float().requires_grad_() for x in (query, key, value)]
    close(torch.autograd.grad(loss(*floats, scale=0.25), floats), [x.float() for x in want])


@pytest.mark.parametrize("method", ["nm-1-2", "blocktopk-0.5-b16", "topk-0.3-f2"])
def test_what_was_saved_may_come_back_with_other_strides(method: str) -> None:
    """As from a hook that keeps it elsewhere."""
    tensors = inputs()

    def out() -> Tensor:
        return dynattn.attention(*tensors, parse(method)).sin().sum()

    want = torch.autograd.grad(out(), tensors)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: x.mT.contiguous() if x.dim() > 2 else x, lambda x: x.mT if x.dim() > 2 else x
    ):
        turned = out()
    close(torch.autograd.grad(turned, tensors), want)


def test_jacobian_where_vmap_repeats_what_was_saved() -> None:
    """A batch of one, repeated, is a view whose first stride is 0."""
    query, key, value = (x.detach()[:1] for x in inputs(3, 5))

    def out(query: Tensor, backend: str = "auto") -> Tensor:
        return dynattn.attention(query, key, value, NM(1, 2), backend=backend)

    want = torch.autograd.functional.jacobian(lambda q: out(q, "reference"), query)
    close([torch.func.jacrev(out)(query)], [want])


def test_few_queries_under_transforms_choose_as_their_gradient_does(monkeypatch) -> None:
    """Inside of vmap no tensor says that it requires a gradient."""
    asked = []
    run = cpu.nm_forward
    monkeypatch.setattr(cpu, "nm_forward", lambda *a, **named: asked.append(named["needs_grad"]) or run(*a, **named))
    queries = torch.stack([x.detach() for x in (inputs(1, 300)[0], inputs(1, 300)[0])])
    key, value = (x.detach() for x in inputs(1, 300)[1:])
    torch.func.grad(lambda q: torch.func.vmap(lambda x: loss(x, key, value))(q).sum())(queries)
    assert asked == [True]


def test_compiled_vmap() -> None:
    query, key, value = inputs()
    queries = torch.stack([query.detach(), -query.detach()]).requires_grad_()
    mapped = torch.func.vmap(lambda x: loss(x, key, value, causal=True))
    compiled = torch.compile(mapped, fullgraph=True, backend="aot_eager")
    close(
        torch.autograd.grad(compiled(queries).sum(), (queries, key)),
        torch.autograd.grad(mapped(queries).sum(), (queries, key)),
    )
