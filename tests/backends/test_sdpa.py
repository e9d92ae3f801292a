"""PyTorch's own attention as a backend: what it refuses and why, and that it gives the reference's answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import dynattn
from dynattn import NM, TopK
from dynattn.backends.problem import Call
from dynattn.backends.sdpa import SDPA
from dynattn.kernels import cpu

DENSE = NM(1, 1)


def inputs(kv_heads: int = 2, kv_len: int = 9) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, n, length, 8) for n, length in ((4, 9), (kv_heads, kv_len), (kv_heads, kv_len))]


@pytest.mark.parametrize(
    ("method", "kv_len", "options", "reason"),
    [
        (NM(1, 2), 9, {}, "it is dense, and nm-1-2 is not"),
        (TopK(k=3), 9, {}, "it is dense, and topk-3 is not"),
        (DENSE, 9, {"return_aux": True}, "it returns no logsumexp"),
        (DENSE, 9, {"dropout_p": 0.5}, "it draws other pairs for dropout"),
        (DENSE, 9, {"attn_mask": torch.ones(9, 9, dtype=torch.bool)}, "it gives NaN for rows that a mask empties"),
        (DENSE, 12, {"causal": True}, "it aligns causal masks top-left where q_len != kv_len"),
        (
            DENSE,
            9,
            {"causal": True},
            "with causal masks a NaN in a value reaches rows before it",
        ),
    ],
)
def test_what_it_refuses(method: Any, kv_len: int, options: dict[str, Any], reason: str) -> None:
    query, key, value = inputs(kv_len=kv_len)
    with pytest.raises(RuntimeError, match=f"backend 'sdpa' cannot run this: {reason}"):
        dynattn.attention(query, key, value, method, backend="sdpa", **options)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [0.3, -0.3])
def test_it_gives_the_references_answer_and_gradients(kv_heads: int, scale: float) -> None:
    query, key, value = (x.requires_grad_() for x in inputs(kv_heads))
    found = []
    for backend in ("sdpa", "reference"):
        out = dynattn.attention(query, key, value, DENSE, backend=backend, scale=scale)
        found.append((out, *torch.autograd.grad(out.square().sum(), [query, key, value])))
    torch.testing.assert_close(*found)


def test_a_negative_scale_behind_a_causal_mask() -> None:
    """Of which PyTorch's kernel makes NaN; `auto` asks it on devices other than CPUs."""
    query, key, value = inputs()
    call = Call(query, key, value, None, None, DENSE, True, -0.3, 0.0, False, False)
    want = dynattn.attention(query, key, value, DENSE, backend="reference", causal=True, scale=-0.3)
    torch.testing.assert_close(SDPA().run(call).out, want)


def test_the_example_of_contributing_is_this_backend() -> None:
    """Word for word from the guide: the same refusals, and the same answers."""
    guide = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", guide, re.S | re.M)
    names: dict[str, Any] = {}
    exec(compile(next(block for block in blocks if "class SDPA" in block), "CONTRIBUTING.md", "exec"), names)
    example = names["SDPA"]()
    query, key, value = inputs()
    plain = Call(query, key, value, None, None, DENSE, False, 0.3, 0.0, False, False)
    torch.testing.assert_close(example.run(plain).out, SDPA().run(plain).out)
    problem = plain.problem
    changes = ({}, {"method": NM(1, 2)}, {"aux": True}, {"dropout": True}, {"masked": True}, {"causal": True})
    for change in changes:
        asked = problem._replace(**change)
        assert example.cannot(asked) == SDPA().cannot(asked)
        assert (example.cannot(asked) is None) == (not change)
    assert (example.name, example.what(problem)) == (SDPA.name, SDPA().what(problem))


@pytest.mark.skipif(not cpu.is_available(), reason="the kernels are not built")
def test_short_dense_calls_in_float32_are_its() -> None:
    """And those alone which it computes as the kernels do, and faster."""

    def backend(
        length: int, head_dim: int = 64, *, kv_heads: int = 2, trains: bool = False, **options: Any
    ) -> str | None:
        query, key, value = (torch.randn(1, n, length, head_dim) for n in (2, kv_heads, kv_heads))
        query.requires_grad_(trains)
        return dynattn.explain(query, key, value, options.pop("method", DENSE), **options).backend

    assert [backend(n) for n in (16, 47, 48, 300)] == ["sdpa", "sdpa", "cpu", "cpu"]
    assert [backend(n, trains=True) for n in (64, 255, 256)] == ["sdpa", "sdpa", "cpu"]
    assert [backend(n, 96) for n in (255, 256)] == ["sdpa", "cpu"]
    assert [backend(n, 40) for n in (255, 256)] == ["sdpa", "cpu"]
    assert [backend(1024, head_dim) for head_dim in (64, 65, 80, 81)] == ["cpu", "sdpa", "sdpa", "cpu"]
    assert backend(1024, 80, causal=True) == "cpu"
    assert [backend(n, 80, trains=True) for n in (639, 640)] == ["sdpa", "cpu"]
    mask = torch.ones(1, 1, 1, 16, dtype=torch.bool)
    assert backend(16, attn_mask=mask) == backend(16, kv_heads=1) == backend(16, method=NM(1, 2)) == "cpu"
    assert backend(16, return_aux=True) == backend(16, dropout_p=0.1) == backend(16, causal=True) == "cpu"
    query, key, value = torch.randn(3, 1, 2, 16, 64)
    assert dynattn.explain(query.half(), key.half(), value.half(), DENSE).backend == "cpu"
    assert dynattn.explain(query[:, :, :8], key, value, DENSE).backend == "cpu"


@pytest.mark.parametrize("causal", [False, True])
def test_short_dense_calls_give_the_definition(causal: bool) -> None:
    """The first and the next, which take a plan, with gradients and without, also of elements that share memory."""
    for query, key, value in (torch.randn(3, 2, 2, 40, 8), torch.randn(3, 1, 1, 1, 8).expand(3, 2, 2, 40, 8)):
        options = {"causal": causal, "scale": 0.3}
        exact = dynattn.attention(query.double(), key.double(), value.double(), DENSE, backend="reference", **options)
        leaves = [x.detach().clone().requires_grad_() for x in (query, key, value)]
        wide = [x.detach().double().requires_grad_() for x in leaves]
        want = dynattn.attention(*wide, method=DENSE, backend="reference", **options)
        for _ in range(3):
            with torch.no_grad():
                short = dynattn.attention(query, key, value, DENSE, **options)
            torch.testing.assert_close(short.double(), exact, rtol=1e-5, atol=1e-6)
            out = dynattn.attention(*leaves, method=DENSE, **options)
            found = torch.autograd.grad(out.sin().sum(), leaves)
            for one, other in zip(found, torch.autograd.grad(want.sin().sum(), wide, retain_graph=True), strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [TopK(ratio=1.0), TopK(k=512)])
def test_what_is_dense_is_computed_as_dense_attention_is(method: TopK) -> None:
    query = torch.randn(1, 2, 512, 16)
    assert dynattn.explain(query, query, query, method) == dynattn.explain(query, query, query, DENSE)
