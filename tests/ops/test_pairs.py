"""The operator that serves every method that keeps pairs, through ``attention()``, with methods of the test's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn import NM, TopK, metrics
from dynattn.kernels.pattern import Pattern
from dynattn.methods import PairMethod, Rows, parse, register
from dynattn.reference import in_blocks
from tests import gradients


@register
@dataclass(frozen=True)
class AboveMean(PairMethod):
    """Keeps the scores above the mean of the allowed ones of ``together`` consecutive queries."""

    together: int = 1

    @property
    def name(self) -> str:
        return f"above-mean-{self.together}"

    @classmethod
    def from_name(cls, name: str) -> AboveMean | None:
        return cls(int(name.removeprefix("above-mean-"))) if name.startswith("above-mean-") else None

    @property
    def rows_together(self) -> int:
        return self.together

    def choose(self, scores: Tensor, rows: Rows) -> Tensor:
        assert rows.query.shape[:3] == scores.shape[:3]
        assert rows.key.shape[1:3] == (scores.shape[1], scores.shape[3])
        kept = torch.empty_like(scores, dtype=torch.bool)
        for first in range(0, scores.shape[2], self.together):
            block = scores[:, :, first : first + self.together]
            allowed = block > -math.inf
            mean = block.masked_fill(~allowed, 0).sum((-2, -1)) / allowed.sum((-2, -1)).clamp(min=1)
            kept[:, :, first : first + self.together] = block > mean[..., None, None]
        return kept | ~(scores > -math.inf)  # also what is not allowed: it must make no difference


def inputs(q_len: int = 37, kv_len: int = 37, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 4, q_len, 8), (2, 2, kv_len, 8), (2, 2, kv_len, 6))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def by_loops(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, together: int) -> Tensor:
    """The definition of attention over ``AboveMean``'s pairs, one query at a time."""
    batch, heads, q_len, head_dim = query.shape
    kv_len, group = key.shape[2], heads // key.shape[1]
    out = torch.zeros(batch, heads, q_len, value.shape[3], dtype=query.dtype)
    for b in range(batch):
        for h in range(heads):
            s = query[b, h] @ key[b, h // group].T * head_dim**-0.5
            for i in range(q_len):
                for j in range(kv_len):
                    if (causal and j > i + kv_len - q_len) or (mask is not None and not mask[b, 0, 0, j]):
                        s[i, j] = -math.inf
            for i in range(q_len):
                first = i // together * together
                block = s[first : first + together]
                allowed = block[block > -math.inf]
                if not len(allowed):
                    continue
                kept = s[i] > allowed.mean()
                if kept.any():
                    out[b, h, i] = s[i][kept].softmax(0) @ value[b, h // group][kept]
    return out


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_blocks, "_BLOCK_SCORES", 1200)  # a few queries at a time


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("together", [1, 5])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_computes_the_definition_whatever_the_blocks(together: int, causal: bool, padded: bool) -> None:
    query, key, value = (x.detach() for x in inputs(q_len=23))
    mask = (torch.arange(37) < torch.tensor([[37], [30]]))[:, None, None] if padded else None
    out = dynattn.attention(query, key, value, AboveMean(together), attn_mask=mask, causal=causal)
    torch.testing.assert_close(out, by_loops(query, key, value, mask, causal, together))


@pytest.mark.parametrize("causal", [False, True])
def test_certificate(causal: bool) -> None:
    query, key, value = (x.detach() for x in inputs())
    out, aux = dynattn.attention(query, key, value, AboveMean(), causal=causal, return_aux=True)
    dense, whole = dynattn.attention(query, key, value, NM(1, 1), causal=causal, return_aux=True)
    mass = (aux.logsumexp - whole.logsumexp).exp()
    torch.testing.assert_close(aux.kept_mass[aux.kept_mass > 0], mass[aux.kept_mass > 0])
    certificate = metrics.certify(out[:, :, 1:], dense[:, :, 1:], aux.kept_mass[:, :, 1:], value)
    assert certificate.holds
    assert (aux.density < 0.7).all()
    assert (aux.density > 0.3).all()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_gradient(dropout_p: float) -> None:
    def call(*tensors: Tensor) -> Tensor:
        query, key, value, bias = tensors
        return dynattn.attention(
            query,
            key,
            value,
            AboveMean(3),
            attn_mask=bias,
            causal=True,
            dropout_p=dropout_p,
            seed=7 if dropout_p else None,
        )

    bias = torch.randn(1, 1, 7, 8, dtype=torch.float64, requires_grad=True)
    gradients.check(call, (*(x[:1] for x in inputs(q_len=7, kv_len=8)), bias))


def test_dropout_is_that_of_nm() -> None:
    query, key, value = inputs(dtype=torch.float32)

    @register
    @dataclass(frozen=True)
    class Everything(AboveMean):
        @property
        def name(self) -> str:
            return "everything"

        @classmethod
        def from_name(cls, name: str) -> Everything | None:
            return cls() if name == "everything" else None

        def choose(self, scores: Tensor, rows: Rows) -> Tensor:
            return torch.ones_like(scores, dtype=torch.bool)

    ours = dynattn.attention(query, key, value, Everything(), dropout_p=0.5, seed=3)
    torch.testing.assert_close(ours, dynattn.attention(query, key, value, NM(1, 1), dropout_p=0.5, seed=3))


def test_opcheck_and_compile() -> None:
    query, key, value = inputs(dtype=torch.float32)
    arguments = (query, key, value, None, None, "above-mean-2", True, 0.3, 0.0, True)
    torch.library.opcheck(torch.ops.dynattn.pair_attention.default, arguments)

    def step(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dynattn.attention(query, key, value, AboveMean(2), causal=True).square().sum()

    step(query, key, value).backward()
    want = [x.grad.clone() for x in (query, key, value) if x.grad is not None]
    for x in (query, key, value):
        x.grad = None
    torch.compile(step, fullgraph=True, backend="aot_eager")(query, key, value).backward()
    torch.testing.assert_close([x.grad for x in (query, key, value)], want)


def test_routes() -> None:
    query, key, value = inputs(dtype=torch.float32)
    plan = dynattn.explain(query, key, value, AboveMean())
    assert plan.backend == "reference"
    assert "above-mean-1 is another method" in plan.rejected["cpu"]
    with pytest.raises(RuntimeError, match="above-mean-1 is another method"):
        dynattn.attention(query, key, value, AboveMean(), backend="cpu")


def test_refusals() -> None:
    query, key, value = inputs(dtype=torch.float32)

    @dataclass(frozen=True)
    class Forgetful(AboveMean):
        @classmethod
        def from_name(cls, name: str) -> None:
            return None

    with pytest.raises(ValueError, match=r"parse\(method.name\) must be the method: got AboveMean"):
        dynattn.attention(query, key, value, Forgetful(2))
    with pytest.raises(TypeError, match=r"cls must be a subclass of dynattn.methods.Method: got <class 'int'>"):
        register(int)  # pyright: ignore[reportArgumentType]
    with pytest.raises(NotImplementedError, match=r"torch.func takes N:M attention alone: got above-mean-1"):
        torch.func.grad(lambda x: dynattn.attention(x, key, value, AboveMean()).sum())(query)
    with pytest.raises(ValueError, match="name must be a method's short name: got 'nothing'"):
        parse("nothing")


@pytest.mark.parametrize("method", [NM(2, 4), NM(1, 2, window=5, sinks=2), NM(1, 3, stride=2)])
@pytest.mark.parametrize("causal", [False, True])
def test_nm_is_a_pair_method_too(method: NM, causal: bool) -> None:
    query, key, value = (x.detach() for x in inputs())
    through = torch.ops.dynattn.pair_attention(query, key, value, None, None, method.name, causal, 0.4, 0.0, True)
    pattern = Pattern.of(method, causal, 0.4)
    nm = torch.ops.dynattn.nm_attention(query, key, value, None, None, *pattern, True, False, "reference")
    torch.testing.assert_close(through, nm, rtol=0, atol=0)


@pytest.mark.parametrize(
    "names",
    [
        ("topk-0.25-f0", "topk-0.5-f0", "topk-0.5-f9", "topk-4", "topk-3"),
        ("threshold-0.1", "threshold-0.2"),
        ("mass-0.9", "mass-0.8"),
        ("blocktopk-0.25-b4", "blocktopk-0.25-b4-w0-s0-f0", "blocktopk-0.5-b8"),
        ("blockmass-0.5-b8", "blockmass-0.5-b4-sampled", "blockmass-0.9-b8-bounds-w0"),
        ("window-3", "window-5-s2"),
        ("perhead(topk-0.25-f0_dense)", "perhead(topk-0.5-f0_dense)"),
        ("topk-0.25-f0+window-2", "topk-0.5-f0+window-3"),
        ("nm-1-2&window-5", "nm-2-4&window-9-s2", "nm-1-2+window-5"),
        ("nm-1-2&blocktopk-0.5-b8-w1", "nm-2-4&blocktopk-0.25-b8-w1", "nm-1-2&blocktopk-0.5-b16"),
        ("blockbound-0.5-b8", "blockbound-0.9-b4"),
        ("verticalslash-8-8-b8", "verticalslash-0-16-b8-l4", "verticalslash-8-8-b4"),
    ],
)
def test_a_compiled_function_takes_one_method_of_a_class_after_another(names: tuple[str, ...]) -> None:
    torch.compiler.reset()  # it counts how often a function was compiled
    query = torch.randn(1, 2, 200, 16)  # long enough for dense attention to be the same kernel's, and not to be all
    compiled = torch.compile(dynattn.attention, fullgraph=True, backend="aot_eager")
    for method in map(parse, names):
        torch.testing.assert_close(
            compiled(query, query, query, method), dynattn.attention(query, query, query, method), rtol=0, atol=0
        )


def test_a_method_may_be_made_in_a_compiled_function() -> None:
    def step(query: Tensor, ratio: float) -> Tensor:
        return dynattn.attention(query, query, query, TopK(ratio=ratio, floor=2))

    query = torch.randn(1, 2, 16, 8)
    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(query, 0.25), step(query, 0.25))
