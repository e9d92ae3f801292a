"""How calls find the tile kernels: names, reasons, and what ``cpu`` takes by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dynattn
from dynattn import NM
from dynattn.backends import again
from dynattn.kernels import cpu
from dynattn.kernels.cpu import isas
from dynattn.methods import Method, TopK, parse

TILES = "cpu-tiles-portable"


def tensors(dtype: torch.dtype = torch.bfloat16, head_dim: int = 32) -> Any:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 2, 80, head_dim, generator=generator).to(dtype) for _ in range(3))


def attend(inputs: Any, method: Method, **options: Any) -> Any:
    query, key, value = inputs
    return dynattn.attention(query, key, value, method, **options)


def explained(inputs: Any, method: Method, **options: Any) -> str:
    query, key, value = inputs
    return str(dynattn.explain(query, key, value, method, **options))


@pytest.fixture
def tiles_are_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with matrix units, with the portable engine in their place."""
    monkeypatch.setattr(isas, "tile_isa", lambda: "tiles-portable")


@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4), NM(3, 5), NM(1, 1), parse("blocktopk-0.5-b16")])
def test_asked_for_by_name(method: Method):
    got, aux = attend(tensors(), method, causal=True, return_aux=True, backend=TILES)
    want, expected = attend(tensors(), method, causal=True, return_aux=True, backend="reference")
    assert (got.float() - want.float()).abs().gt(0.03).float().mean() < 0.01  # near-ties may be chosen otherwise
    torch.testing.assert_close(aux.logsumexp, expected.logsumexp, atol=0.05, rtol=0.0)
    assert "(tiles-portable)" in (explained(tensors(), method, backend=TILES))


@pytest.mark.parametrize(
    ("inputs", "method", "reason"),
    [
        (tensors(torch.float16), NM(1, 2), "tiles take bfloat16 and float32, not float16"),
        ([x.requires_grad_() for x in tensors(torch.float32)], NM(1, 2), "tiles compute float32 without gradients"),
        (tensors(torch.float32), TopK(8), "tiles choose rows in bfloat16, not float32"),
        ([x.requires_grad_() for x in tensors()], TopK(8), "tiles choose rows for the output alone"),
        (tensors(head_dim=520), NM(1, 2), "head_dim of at most 512, not 520"),
    ],
)
def test_what_they_do_not_take_is_said(inputs: Any, method: Method, reason: str):
    with pytest.raises(RuntimeError, match=f"backend '{TILES}' cannot run this: .*{reason}"):
        attend(inputs, method, backend=TILES)


def test_float32_is_taken_by_name_alone(monkeypatch: pytest.MonkeyPatch):
    inputs = tensors(torch.float32)
    with pytest.raises(RuntimeError, match="tiles compute float32 without dropout"):
        attend(inputs, NM(1, 2), backend=TILES, dropout_p=0.5)
    best = attend(inputs, NM(1, 2))
    for method in (NM(1, 2), parse("blocktopk-0.5-b16")):
        torch.testing.assert_close(attend(inputs, method, backend=TILES), attend(inputs, method), rtol=0, atol=1e-5)
    monkeypatch.setattr(isas, "tile_isa", lambda: "tiles-portable")
    again._plans.clear()
    assert torch.equal(attend(inputs, NM(1, 2)), best)
    assert "parts" not in explained(inputs, NM(1, 2))


@pytest.mark.parametrize("name", ["amx", "avx512bf16"])
def test_a_refusal_is_a_reason(name: str):
    """Where the processor or the system has no such unit: an answer, and no crash."""
    refusal = cpu.isa_refusal(name)
    if refusal is None:
        assert f"({name})" in (explained(tensors(), NM(1, 2), backend=f"cpu-{name}"))
        return
    with pytest.raises(RuntimeError, match=refusal.split("(")[0]):
        attend(tensors(), NM(1, 2), backend=f"cpu-{name}")
    assert isas.tile_isa() != name


def test_explain_says_why_a_bfloat16_call_has_no_matrix_unit():
    said = explained(tensors(), NM(1, 2))
    engine = isas.tile_isa()
    assert (f"({engine})" if engine else f"not amx: {cpu.isa_refusal('amx')}") in said
    assert "amx" not in (explained(tensors(torch.float32), NM(1, 2)))


@pytest.fixture
def a_matrix_unit(monkeypatch: pytest.MonkeyPatch):
    """A processor that has one, for which the portable engine stands."""
    monkeypatch.setattr(isas, "tile_engine", lambda: "tiles-portable")
    for forget in (isas.tile_isa.cache_clear, again._plans.clear):
        forget()
    yield
    for forget in (isas.tile_isa.cache_clear, again._plans.clear):
        forget()


@pytest.mark.usefixtures("a_matrix_unit")
def test_an_engine_is_taken_where_its_results_are_right():
    assert isas.tile_isa() == "tiles-portable"
    inputs = tensors()
    assert torch.equal(attend(inputs, NM(1, 2)), attend(inputs, NM(1, 2), backend=TILES))
    assert "(tiles-portable)" in (explained(inputs, NM(1, 2)))


@pytest.mark.usefixtures("a_matrix_unit")
def test_an_engine_whose_results_are_not_right_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(isas, "tile_disagreement", lambda engine: "2:4 with stride 16")
    assert isas.tile_isa() is None
    inputs, best = tensors(), cpu.best_isa()
    assert torch.equal(attend(inputs, NM(1, 2)), attend(inputs, NM(1, 2), backend=f"cpu-{best}"))
    said = explained(inputs, NM(1, 2))
    assert f"({best}; not tiles-portable: its results are not right on this processor: 2:4 with stride 16" in said
    attend(inputs, NM(1, 2), backend=TILES)  # by name it runs
    assert "whose results are not right" in (explained(inputs, NM(1, 2), backend=TILES))


@pytest.mark.usefixtures("a_matrix_unit")
def test_the_check_runs_once(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(isas, "tile_disagreement", lambda engine: asked.append(engine))
    for _ in range(3):
        attend(tensors(), NM(2, 4))
    assert asked == ["tiles-portable"]


@pytest.mark.usefixtures("tiles_are_fastest")
def test_cpu_takes_tiles_where_they_are_fastest():
    inputs = tensors()
    for method in (NM(1, 2), parse("blocktopk-0.5-b16")):
        by_name = attend(inputs, method, backend=TILES)
        assert torch.equal(attend(inputs, method), by_name)
        assert "(tiles-portable" in (explained(inputs, method))


@pytest.mark.usefixtures("tiles_are_fastest")
def test_parts_of_the_keys_merge_by_what_tiles_give():
    """The certificate's logsumexp is not that of weights rounded to bfloat16, which would be off by 2e-3."""
    query, key, value = tensors()
    wide = [x.double() for x in tensors()]
    exact, of_exact = dynattn.attention(wide[0], wide[1], wide[2], NM(1, 1), return_aux=True, backend="reference")
    plain = dynattn.attention(query, key, value, NM(1, 1), backend="reference")
    parts = [
        attend((query, key[:, :, s], value[:, :, s]), NM(1, 1), return_aux=True) for s in (slice(32), slice(32, 80))
    ]
    logsumexp = torch.stack([aux.logsumexp for _, aux in parts])
    torch.testing.assert_close(logsumexp.logsumexp(0).double(), of_exact.logsumexp, rtol=1e-6, atol=1e-5)
    weights = logsumexp.softmax(0).unsqueeze(-1)
    errors = [
        (x.double() - exact).abs().max() for x in ((weights * torch.stack([out for out, _ in parts])).sum(0), plain)
    ]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.usefixtures("tiles_are_fastest")
def test_cpu_takes_other_kernels_where_tiles_do_not_go():
    other = f"cpu-{cpu.best_isa()}"
    query, key, value = tensors()
    few = query[:, :, :2]
    for inputs, method in (
        ((few, key, value), NM(1, 2)),
        (tensors(torch.float32), NM(1, 2)),
        ([torch.cat([x] * 4, 2) for x in (query, key, value)], TopK(8)),  # a long row, of which few are kept by rank
    ):
        assert torch.equal(attend(inputs, method), attend(inputs, method, backend=other))
    trained = [x.clone().requires_grad_() for x in (query, key, value)]
    got = attend(trained, TopK(8))
    assert torch.equal(got, attend(trained, TopK(8), backend=other))


@pytest.mark.usefixtures("tiles_are_fastest")
@pytest.mark.parametrize("name", ["nm-1-2", "blocktopk-0.5-b16", "topk-8"])
def test_forward_and_backward_come_from_one_kernel(name: str):
    """Gradients make the forward's choice again, so that the same kernel makes both; rows have kernels of their own."""
    inputs: Any = tuple(x.requires_grad_() for x in tensors())
    gradients = []
    for backend in ("auto", f"cpu-{cpu.best_isa()}" if name == "topk-8" else TILES):
        out = attend(inputs, parse(name), backend=backend)
        gradients.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert ("(tiles-portable)" in (explained(inputs, parse(name)))) == (name != "topk-8")
    by_name = gradients[1][1:]
    out = attend(inputs, parse(name), backend="reference")
    for got, want in zip(by_name, torch.autograd.grad(out.float().square().sum(), inputs), strict=True):
        wrong = (got.float() - want.float()).abs() > 0.03 * want.float().abs().max()
        assert wrong.float().mean() < 0.01  # near-ties may be chosen otherwise


@pytest.mark.usefixtures("tiles_are_fastest")
def test_few_queries_train_on_the_kernels_that_read_keys_in_place():
    query, key, value = (x.requires_grad_() for x in tensors())
    few, gradients = query[:, :, :2], []
    for backend in ("auto", f"cpu-{cpu.best_isa()}"):
        out = attend((few, key, value), NM(1, 2), backend=backend)
        gradients.append(torch.autograd.grad(out.float().square().sum(), (query, key, value)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.usefixtures("tiles_are_fastest")
def test_compiled_calls_take_them_too():
    inputs = tensors()
    compiled = torch.compile(lambda *inputs: attend(inputs, NM(2, 4)), backend="eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), attend(inputs, NM(2, 4), backend=TILES))
