"""Derivatives that all operators have, and those that they refuse."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian

import dynattn
from dynattn.methods import parse
from dynattn.ops import blocks, mixing, nm, pairs, rows, windows
from tests.methods.every import NAMES, PLAIN

OPERATORS = {module.__name__: module for module in (nm, pairs, rows, blocks, windows, mixing)}
REFUSAL = "attention: forward-mode derivatives"


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, 13, 4, generator=generator, dtype=dtype) for _ in range(3))
    return query, key, value


def attend(method: str, which: int):
    tensors: Any = cast(Any, inputs())

    def function(x: Tensor) -> Tensor:
        given: Any = [*tensors[:which], x, *tensors[which + 1 :]]
        return dynattn.attention(*given, method=parse(method), causal=True)

    return function, tensors[which]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("method", NAMES)
def test_dual_numbers_get_their_tangent_or_an_error(method: str, which: int) -> None:
    function, x = attend(method, which)
    tangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with forward_ad.dual_level():
        if method not in PLAIN:
            with pytest.raises(NotImplementedError, match=REFUSAL):
                function(forward_ad.make_dual(x, tangent))
            return
        got = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent
    assert got is not None
    want = jacobian(function, x).flatten(4).flatten(0, 3) @ tangent.flatten()
    torch.testing.assert_close(got.flatten(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", NAMES)
def test_other_ways_to_ask_for_forward_mode(method: str) -> None:
    function, x = attend(method, 0)
    if method == "efficient":
        want = jacobian(function, x)
        torch.testing.assert_close(jacobian(function, x, strategy="forward-mode", vectorize=True), want)
        return
    if method in PLAIN:
        with pytest.raises(RuntimeError, match="random operations inside of vmap"):
            jacobian(function, x, strategy="forward-mode", vectorize=True)
        return
    with pytest.raises(NotImplementedError):
        jacobian(function, x, strategy="forward-mode", vectorize=True)
    for ask in (torch.func.linearize, lambda f, x: torch.func.jvp(f, (x,), (x,)), lambda f, x: torch.func.jacfwd(f)(x)):
        with pytest.raises(NotImplementedError):
            ask(function, x)


@pytest.mark.parametrize("method", NAMES)
def test_tensors_without_tangent_pass_under_a_dual_level(method: str) -> None:
    function, x = attend(method, 0)
    with forward_ad.dual_level():
        torch.testing.assert_close(function(x), function(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_each_operator_and_its_backward_refuse_dual_numbers(name: str) -> None:
    """Called by themselves, without :func:`dynattn.attention`."""
    module = OPERATORS[name]
    for schema in (module.FORWARD, module.BACKWARD):
        arguments: list[Any] = [None] * len(schema.Arguments._fields)
        with forward_ad.dual_level():
            arguments[0] = forward_ad.make_dual(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
            for i, argument in enumerate(schema.operator._schema.arguments):
                fill = {"Tensor": torch.ones(1, 1, 1, 1), "str": "cpu", "bool": False, "int": 1, "number": 0.5}
                if arguments[i] is None:
                    arguments[i] = fill.get(str(argument.type))
            with pytest.raises(NotImplementedError, match=REFUSAL):
                schema.operator(*arguments)


@pytest.mark.parametrize("method", NAMES)
def test_second_derivatives_are_right_or_refused(method: str) -> None:
    function, x = attend(method, 0)
    x = x.clone().requires_grad_()
    first = torch.autograd.grad(function(x).sin().sum(), x, create_graph=True)[0]
    if method not in PLAIN:
        with pytest.raises(RuntimeError, match=r"second derivatives are not|derivative for .* is not implemented"):
            torch.autograd.grad(first.square().sum(), x)
        return
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((first * step).sum(), x)[0]
    moved = [
        torch.autograd.grad(function(y).sin().sum(), y)[0]
        for y in ((x + sign * 1e-2 * step).detach().requires_grad_() for sign in (1, -1))
    ]
    torch.testing.assert_close(got, (moved[0] - moved[1]) / 2e-2, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("method", NAMES)
def test_batched_gradients_are_those_taken_one_by_one(method: str) -> None:
    function, x = attend(method, 1)
    one_by_one = jacobian(function, x)
    torch.testing.assert_close(jacobian(function, x, vectorize=True), one_by_one, rtol=1e-4, atol=1e-5)


def test_gradients_are_found_by_name() -> None:
    for module in OPERATORS.values():
        derived = set(module.BACKWARD.Results._fields)
        assert derived <= set(module.FORWARD.Arguments._fields)
        taken = {name for name in module.BACKWARD.Arguments._fields if not name.startswith("grad_")}
        known = {*module.FORWARD.Arguments._fields, *module.FORWARD.Results._fields, "mask_needs_grad"}
        assert taken <= known
