"""What linear layers of which parts are left out refuse, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynattn.ops.linear import (
    linear_nm_act,
    linear_nm_weight,
    linear_outputs,
    linear_rows,
    linear_threshold,
    nm_keep,
    pack_nm,
)

X, WEIGHT, BIAS = torch.ones(2, 6), torch.ones(5, 6), torch.ones(5)
INPUTS, OUTPUTS = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
CASES: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "x must be a tensor: got list; convert", {"x": [1.0]}),
    (TypeError, "keep must be a tensor: got NoneType; convert", {"keep": None}),
    (TypeError, "bias must be a tensor: got int; convert", {"bias": 3}),
    (ValueError, r"x must be \(tokens, in\) and weight \(out, in\): got \(2, 1, 6\) and \(5, 6\); flatten",
     {"x": X.unsqueeze(1)}),
    (ValueError, r"x and weight must have as many inputs: got 6 and 5; pass weight as the layer stores it",
     {"weight": WEIGHT.t()}),
    (ValueError, r"keep must be bool \(tokens, out\) = \(2, 5\): got torch.bool \(2, 6\); one", {"keep": INPUTS}),
    (TypeError, r"keep must be bool \(tokens, out\) = \(2, 5\): got torch.float32 \(2, 5\); one",
     {"keep": OUTPUTS.float()}),
    (TypeError, "x and weight must share one dtype: got torch.float32 and torch.float64; convert",
     {"weight": WEIGHT.double()}),
    (TypeError, "x and bias must share one dtype: got torch.float32 and torch.bfloat16; convert",
     {"bias": BIAS.bfloat16()}),
    (ValueError, r"bias must be \(out,\) = \(5,\): got \(6,\); one", {"bias": torch.ones(6)}),
    (TypeError, "x must be floating point: got torch.int64; convert", {"x": X.long()}),
    (TypeError, "scale must be float32 where weight is int8: got None; one", {"weight": WEIGHT.to(torch.int8)}),
    (TypeError, "scale must be float32 where weight is int8: got torch.float64; one",
     {"weight": WEIGHT.to(torch.int8), "scale": BIAS.double()}),
    (ValueError, r"scale must be \(out,\) = \(5,\): got \(1,\); one",
     {"weight": WEIGHT.to(torch.int8), "scale": BIAS[:1]}),
    (TypeError, "scale goes with an int8 weight: got torch.float32; leave", {"scale": BIAS}),
    (ValueError, "all tensors must be on one device: got x on cpu, weight on meta, keep on cpu, bias on cpu; move",
     {"weight": WEIGHT.to("meta")}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "wrong"), CASES)
def test_outputs(kind: type[Exception], text: str, wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"x": X, "weight": WEIGHT, "bias": BIAS, "keep": OUTPUTS} | wrong
    with pytest.raises(kind, match=f"linear_outputs: {text}"):
        linear_outputs(**given)


def test_rows() -> None:
    for wrong, text in (
        ({"weight_t": WEIGHT}, r"x and weight_t must have as many inputs: got 6 and 5; pass weight_t as weight.t\(\)"),
        ({"keep": OUTPUTS}, r"keep must be bool \(tokens, in\) = \(2, 6\): got torch.bool \(2, 5\); one"),
        ({"x": X[0]}, r"x must be \(tokens, in\) and weight_t \(in, out\): got \(6,\) and \(6, 5\); flatten"),
    ):
        given: dict[str, Any] = {"x": X, "weight_t": WEIGHT.t(), "bias": BIAS, "keep": INPUTS} | wrong
        with pytest.raises(ValueError, match=f"linear_rows: {text}"):
            linear_rows(**given)


def test_packed_weights() -> None:
    packed = pack_nm(torch.tensor([[1.0, 0, 0, 1]]), 1, 2)
    cases: list[tuple[type[Exception], str, tuple[Any, ...]]] = [
        (TypeError, "packed must be what pack_nm returns: got Tensor; pack the weight", (X, WEIGHT)),
        (ValueError, r"x must be \(tokens, in\) = \(tokens, 4\): got \(2, 6\); flatten", (X, packed)),
        (
            TypeError,
            "x and packed must share one dtype: got torch.float64 and torch.float32; conv",
            (X[:, :4].double(), packed),
        ),
        (ValueError, r"bias must be \(out,\) = \(1,\): got \(5,\); one", (X[:, :4], packed, BIAS)),
    ]
    for kind, text, arguments in cases:
        with pytest.raises(kind, match=f"linear_nm_weight: {text}"):
            linear_nm_weight(*arguments)


def test_chosen_inputs() -> None:
    groups: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "n must be at least 1 and below m, and m at most 32: got 2 of 2; try", {"n": 2}),
        (ValueError, "n must be at least 1 and below m, and m at most 32: got 0 of 2; try", {"n": 0}),
        (ValueError, "n must be at least 1 and below m, and m at most 32: got 1 of 33; try", {"m": 33}),
        (TypeError, "n and m must be ints: got 1.0 and 2; try", {"n": 1.0}),
        (TypeError, "factors must be float32: got torch.float64; convert", {"factors": torch.ones(6).double()}),
        (ValueError, r"factors must be \(in,\) = \(6,\): got \(1,\); one", {"factors": torch.ones(1)}),
        (TypeError, "factors must be a tensor: got float; convert", {"factors": 1.0}),
        (TypeError, "x must be floating point: got torch.int64; convert", {"x": X.long()}),
    ]
    for kind, text, wrong in groups:
        given: dict[str, Any] = {"x": X, "n": 1, "m": 2} | wrong
        with pytest.raises(kind, match=f"linear_nm_act: {text}"):
            linear_nm_act(weight_t=WEIGHT.t(), bias=BIAS, **given)
        with pytest.raises(kind, match=f"nm_keep: {text}"):
            nm_keep(**given)
    with pytest.raises(ValueError, match=r"nm_keep: x must be \(tokens, in\): got \(6,\); flatten"):
        nm_keep(X[0], n=1, m=2)


def test_thresholds() -> None:
    ones = torch.ones(1)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (TypeError, "thresholds must be a tensor: got NoneType; convert", {"thresholds": None}),
        (TypeError, "thresholds must be float32: got torch.float64; convert", {"thresholds": ones.double()}),
        (ValueError, r"thresholds must be \(1,\) or \(in,\) = \(6,\): got \(5,\); one", {"thresholds": BIAS}),
        (ValueError, r"x and weight_t must have as many inputs: got 6 and 5; pass", {"weight_t": WEIGHT}),
        (TypeError, "x and weight_t must share one dtype: got torch.float32 and torch.int8; convert",
         {"weight_t": WEIGHT.t().to(torch.int8)}),
        (ValueError, r"bias must be \(out,\) = \(5,\): got \(6,\); one", {"bias": torch.ones(6)}),
        (ValueError, r"x must be \(tokens, in\) and weight_t \(in, out\): got \(6,\) and \(6, 5\); flat", {"x": X[0]}),
        (TypeError, "weight_t must be a tensor: got NoneType; convert", {"weight_t": None}),
        (ValueError, "all tensors must be on one device: got x on cpu, weight_t on meta",
         {"weight_t": WEIGHT.t().to("meta")}),
    ]  # fmt: skip
    for kind, text, wrong in cases:
        given: dict[str, Any] = {"x": X, "weight_t": WEIGHT.t(), "bias": BIAS, "thresholds": ones} | wrong
        with pytest.raises(kind, match=f"linear_threshold: {text}"):
            linear_threshold(**given)
