"""Linear layers of which parts are left out, as they are called: kernel and definition, derivatives, the compiler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from dynattn.kernels import cpu
from dynattn.kernels.cpu import runner
from dynattn.ops import linear
from dynattn.ops.linear import (
    linear_nm_act,
    linear_nm_weight,
    linear_outputs,
    linear_rows,
    linear_threshold,
    nm_keep,
    pack_nm,
)
from tests.kernels.cpu.linear.calling import above_by_loops, largest_by_loops, layer, outputs_by_loops, rows_by_loops

OF_INPUTS = ("rows", "nm_act", "threshold")
FUNCTIONS = (*OF_INPUTS, "outputs", "nm_weight")


def call(function: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One of the functions; a choice that is not made by the numbers depends on sizes alone."""
    if function == "rows":
        return linear_rows(x, weight.t(), bias, keep=some(*x.shape))
    if function == "nm_act":
        return linear_nm_act(x, weight.t(), bias, n=1, m=2)
    if function == "threshold":
        return linear_threshold(x, weight.t(), bias, thresholds=torch.ones(1))
    if function == "outputs":
        return linear_outputs(x, weight, bias, keep=some(x.shape[0], weight.shape[0]))
    return linear_nm_weight(x, pack_nm(weight, 1, 2), bias)


def some(tokens: int, count: int) -> Tensor:
    """Three of five, others for each token."""
    return (torch.arange(count) + 2 * torch.arange(tokens).unsqueeze(1)) % 5 < 3


def kept(function: str, x: Tensor) -> Tensor:
    """The inputs that :func:`call` keeps."""
    if function == "rows":
        return some(*x.shape)
    return largest_by_loops(x, 1, 2, None) if function == "nm_act" else above_by_loops(x, torch.ones(1))


def alternating(weight: Tensor) -> Tensor:
    """1:2."""
    i, j = torch.arange(weight.shape[1]), torch.arange(weight.shape[0]).unsqueeze(1)
    return weight.where((i + j) % 2 == 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 8, 9])
def test_every_case_gives_the_definition(tokens: int, dtype: torch.dtype) -> None:
    """Sums of small integers: one answer, by the kernel or not, however the weights lie."""
    its = layer(tokens, 63, 65, dtype)
    turned = its.weight.t().contiguous()
    for bias in (its.bias, None):
        want = rows_by_loops(its.x, its.weight, bias, its.keep_inputs).to(dtype)
        for weight_t in (turned, its.weight.t()):
            assert torch.equal(linear_rows(its.x, weight_t, bias, keep=its.keep_inputs), want)
            for function in OF_INPUTS:
                own = rows_by_loops(its.x, its.weight, bias, kept(function, its.x)).to(dtype)
                assert torch.equal(call(function, its.x, weight_t.t(), bias), own), function
        want = outputs_by_loops(its.x, its.weight, bias, its.keep_outputs).to(dtype)
        for weight in (its.weight, turned.t(), nn.Parameter(its.weight, requires_grad=False)):
            assert torch.equal(linear_outputs(its.x, weight, bias, keep=its.keep_outputs), want)
        weight = alternating(its.weight)
        want = outputs_by_loops(its.x, weight, bias, torch.ones_like(its.keep_outputs)).to(dtype)
        assert torch.equal(linear_nm_weight(its.x, pack_nm(weight, 1, 2), bias), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (8, 16), (2, 5), (31, 32)])
def test_a_choice_may_be_made_once_for_several_layers(n: int, m: int, dtype: torch.dtype) -> None:
    for tokens in (0, 3, 40):
        its = layer(tokens, 70, 33, dtype)
        weight_t, factors = its.weight.t().contiguous(), torch.arange(70).remainder(4) + 0.5
        for weights in (None, factors):
            keep = nm_keep(its.x, n=n, m=m, factors=weights)
            assert torch.equal(keep, largest_by_loops(its.x, n, m, weights))
            y = linear_nm_act(its.x, weight_t, its.bias, n=n, m=m, factors=weights)
            assert torch.equal(linear_rows(its.x, weight_t, its.bias, keep=keep), y)


@pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")
def test_a_choice_is_the_kernels_whatever_becomes_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    its = layer(40, 70, 3, torch.float32)
    want = largest_by_loops(its.x, 2, 4, None)
    monkeypatch.setattr(linear.linear_definitions, "nm_kept", None)
    assert torch.equal(nm_keep(its.x.clone().requires_grad_(), n=2, m=4), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nm_keep(its.x, n=2, m=4), want)
    with torch.profiler.profile():
        assert torch.equal(nm_keep(its.x, n=2, m=4), want)
    with forward_ad.dual_level():
        assert torch.equal(nm_keep(forward_ad.make_dual(its.x, its.x), n=2, m=4), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_more_leading_dimensions(dtype: torch.dtype) -> None:
    its = layer(12, 20, 9, dtype)
    for function in ("nm_act", "threshold"):
        want = call(function, its.x, its.weight, its.bias)
        for shape in ((2, 6), (3, 1, 4), (12, 1)):
            x = its.x.unflatten(0, shape)
            for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x.clone().requires_grad_()):
                assert torch.equal(call(function, given, its.weight, its.bias), want.unflatten(0, shape))
        assert call(function, its.x.new_empty(2, 0, 20), its.weight, its.bias).shape == (2, 0, 9)


def test_inputs_and_choices_may_lie_apart() -> None:
    for tokens in (3, 40):
        its = layer(tokens, 70, 33, torch.float32)
        x, factors = its.x.t().contiguous().t(), torch.ones(140)[::2]
        weight_t = its.weight.t().contiguous()
        keep = its.keep_inputs.t().contiguous().t()
        assert torch.equal(nm_keep(x, n=2, m=4, factors=factors), largest_by_loops(x, 2, 4, None))
        for y, e in (
            (linear_rows(x, weight_t, its.bias, keep=keep), keep),
            (linear_nm_act(x, weight_t, its.bias, n=2, m=4, factors=factors), largest_by_loops(x, 2, 4, None)),
            (linear_threshold(x, weight_t, its.bias, thresholds=factors), above_by_loops(x, factors)),
        ):
            assert torch.equal(y, rows_by_loops(x, its.weight, its.bias, e).float())


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0)])
def test_no_inputs_or_no_outputs(sizes: tuple[int, int]) -> None:
    x, weight, bias = torch.ones(2, sizes[0]), torch.ones(sizes[1], sizes[0]), torch.ones(sizes[1])
    for function in FUNCTIONS:
        y = call(function, x, weight, bias)
        assert y.shape == (2, sizes[1])
        assert function == "outputs" or (y == 1).all()
    assert nm_keep(x, n=1, m=2).shape == x.shape


@pytest.mark.parametrize("tokens", [2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_weights(tokens: int, dtype: torch.dtype) -> None:
    its = layer(tokens, 40, 33, dtype)
    scale = 2.0 ** torch.arange(33).remainder(4)
    quantised, weight = its.weight.to(torch.int8), its.weight * scale.unsqueeze(1)
    got = linear_rows(its.x, quantised.t().contiguous(), its.bias, keep=its.keep_inputs, scale=scale)
    assert torch.equal(got, rows_by_loops(its.x, weight, its.bias, its.keep_inputs).to(dtype))
    got = linear_outputs(its.x, quantised, None, keep=its.keep_outputs, scale=scale)
    assert torch.equal(got, outputs_by_loops(its.x, weight, None, its.keep_outputs).to(dtype))


@pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_kernel_runs_where_it_should_and_past_the_dispatcher(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    monkeypatch.setattr(runner, "run", lambda *_: runs.append(1))
    for name in ("ROWS", "NM_ACT", "THRESHOLD", "OUTPUTS", "NM_WEIGHT"):
        monkeypatch.setattr(linear, name, name)  # no operator
    its = layer(8, 40, 32, torch.float32)
    for dtype, tokens, expected in (
        (torch.float32, 8, 1), (torch.bfloat16, 1, 1), (torch.float32, 9, int(function in OF_INPUTS)),
        (torch.float64, 1, 0), (torch.bfloat16, 9, 0),
    ):  # fmt: skip
        runs.clear()
        its = layer(tokens, 40, 32, dtype)
        weight = nn.Parameter(alternating(its.weight), requires_grad=False)
        with torch.no_grad():
            for _ in range(2):
                if function in OF_INPUTS:
                    call(function, its.x, weight.t().contiguous().t(), its.bias)
                else:
                    call(function, its.x, weight, its.bias)
        assert len(runs) == 2 * expected


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_those_of_the_definition(function: str) -> None:
    """dX = (dY W) ∘ E and dW = dYᵀ (x ∘ E) where inputs are left out; dY ∘ E in place of dY where outputs are."""
    its = layer(2, 6, 5, torch.float32)
    x, weight, bias = (y.clone().requires_grad_() for y in (its.x, alternating(its.weight), its.bias))
    dy = torch.randint(-3, 4, (2, 5), generator=torch.Generator().manual_seed(1)).float()
    if function in OF_INPUTS:
        y, e = call(function, x, weight, bias), kept(function, its.x)
        want = ((dy @ weight) * e, dy.t() @ (x * e), dy.sum(0))
    elif function == "outputs":
        y, e = linear_outputs(x, weight, bias, keep=its.keep_outputs), its.keep_outputs
        want = ((dy * e) @ weight, (dy * e).t() @ x, (dy * e).sum(0))
    else:
        packed = pack_nm(weight.detach(), 1, 2)
        y = linear_nm_weight(x, packed, bias)
        weight = torch.zeros(0, requires_grad=True)
        want = (dy @ packed.unpack(), weight, dy.sum(0))
    assert torch.equal(torch.cat([g.flatten() for g in torch.autograd.grad(y, (x, bias), dy, retain_graph=True)]),
                       torch.cat([want[0].flatten(), want[2].flatten()]))  # fmt: skip
    if function != "nm_weight":
        assert torch.equal(torch.autograd.grad(y, weight, dy)[0], want[1])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_transforms_and_forward_mode(function: str) -> None:
    its = layer(2, 6, 5, torch.float32)
    weight = alternating(its.weight)

    def run(x: Tensor) -> Tensor:
        return call(function, x, weight, its.bias)

    tangent = torch.ones_like(its.x)
    want = torch.autograd.functional.jacobian(run, its.x).flatten(2) @ tangent.flatten()  # pyright: ignore
    assert torch.equal(torch.func.jvp(run, (its.x,), (tangent,))[1], want)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(run(forward_ad.make_dual(its.x, tangent))).tangent
    assert found is not None
    assert torch.equal(found, want)
    several = torch.stack([its.x, 2 * its.x])
    assert torch.equal(torch.vmap(run)(several), torch.stack([run(x) for x in several]))


def operators() -> list[tuple[Any, tuple]]:
    its = layer(2, 6, 5, torch.float32)
    scale = torch.ones(5)
    packed = pack_nm(alternating(its.weight), 1, 2)
    return [
        (linear.ROWS.operator, (its.x, its.weight.t().contiguous(), its.bias, its.keep_inputs, None)),
        (linear.ROWS.operator, (its.x, its.weight.t().contiguous().to(torch.int8), None, its.keep_inputs, scale)),
        (linear.OUTPUTS.operator, (its.x, its.weight, its.bias, its.keep_outputs, None)),
        (linear.NM_WEIGHT.operator, (its.x, packed.values, packed.places, its.bias, 1, 2)),
        (linear.NM_ACT.operator, (its.x, its.weight.t().contiguous(), its.bias, torch.ones(6), 2, 4)),
        (linear.THRESHOLD.operator, (its.x, its.weight.t().contiguous(), None, torch.ones(1))),
    ]


@pytest.mark.parametrize("which", [0, 3, 4])
def test_opcheck(which: int) -> None:
    operator, arguments = operators()[which]
    torch.library.opcheck(operator, arguments)
    asked = tuple(
        x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments
    )
    torch.library.opcheck(operator, asked, test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))


def test_operators_called_by_themselves_have_derivatives() -> None:
    for operator, arguments in operators():
        x = arguments[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(operator(x, *arguments[1:]).sum(), x)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_node_for_the_compiler(function: str) -> None:
    its = layer(2, 6, 8, torch.float32)
    packed = pack_nm(alternating(its.weight), 1, 2)
    weight, weight_t = nn.Parameter(its.weight), its.weight.t().contiguous()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable:
        graphs.append(graph)
        return graph.forward

    def run(x: Tensor) -> Tensor:
        if function == "rows":
            return linear_rows(x, weight_t, its.bias, keep=x > 0)
        if function in OF_INPUTS:
            return call(function, x, weight, its.bias)
        if function == "outputs":
            return linear_outputs(x, weight, its.bias, keep=torch.cat([x, x[:, :2]], 1) > 0)
        return linear_nm_weight(x, packed, its.bias)

    with torch.no_grad():
        got, want = torch.compile(run, backend=backend, fullgraph=True)(its.x), run(its.x)
    names = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert [name for name in names if "dynattn" in name] == [f"dynattn.linear_{function}.default"]
    assert not [name for name in names if "linear" in name and "dynattn" not in name]
    assert torch.equal(got, want)


def test_autocast_does_what_it_does_to_a_linear_layer() -> None:
    its = layer(2, 6, 5, torch.float32, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = nn.functional.linear(its.x, its.weight, its.bias)
        assert torch.equal(linear_rows(its.x, its.weight.t(), its.bias, keep=its.keep_inputs), want)
        assert linear_outputs(its.x, its.weight, its.bias, keep=its.keep_outputs).dtype == torch.bfloat16


@pytest.mark.skipif(not cpu.is_available(), reason=cpu.unavailable_reason() or "")
def test_where_weights_are_not_finite_the_kernel_computes_nothing_of_what_is_left_out() -> None:
    weight_t = torch.tensor([[math.inf, 1.0], [2.0, 3.0]])
    keep = torch.tensor([[False, True]])
    assert torch.equal(linear_rows(torch.ones(1, 2), weight_t, keep=keep), torch.tensor([[2.0, 3.0]]))
    assert torch.equal(linear_rows(torch.ones(9, 2), weight_t, keep=keep.expand(9, 2)), torch.tensor([[2.0, 3.0]] * 9))
    wide = linear_rows(torch.ones(9, 2).double(), weight_t.double(), keep=keep.expand(9, 2))
    assert wide[:, 0].isnan().all()  # 0 · ∞ of the definition
    assert (wide[:, 1] == 3).all()
