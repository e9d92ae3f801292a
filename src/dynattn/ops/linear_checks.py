"""The checks of the arguments of :mod:`dynattn.ops.linear`. Sizes may be symbols of ``torch.compile``."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from dynattn.ops.nm_weights import PackedNM

MOST_OF_GROUP = 32
"""N:M chooses among at most so many inputs, as in :class:`dynattn.NM`."""


def check(
    function: str, x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None, *,
    inputs_first: bool,
) -> None:  # fmt: skip
    """Refuse what :func:`dynattn.ops.linear.linear_rows` and ``linear_outputs`` cannot take.

    Args:
        function: the caller's name.
        x, weight, bias, keep, scale: its arguments.
        inputs_first: whether the weight is (in, out), and inputs are kept; else it is (out, in), and outputs are.

    Raises:
        TypeError, ValueError: as these say.
    """
    name = "weight_t" if inputs_first else "weight"
    _check_tensors(function, ("x", x), (name, weight), ("keep", keep), optional=(("bias", bias), ("scale", scale)))
    outputs = _check_shapes(function, x, weight, inputs_first)
    if keep.dtype != torch.bool or keep.shape != (x.shape[0], weight.shape[0]):
        what = "(tokens, in)" if inputs_first else "(tokens, out)"
        _refuse(
            function, f"keep must be bool {what} = {(x.shape[0], weight.shape[0])}",
            f"{keep.dtype} {tuple(keep.shape)}", "one truth value each, for each token",
            TypeError if keep.dtype != torch.bool else ValueError,
        )  # fmt: skip
    _check_dtypes(function, name, x, weight, bias, scale)
    for vector, its in (("bias", bias), ("scale", scale)):
        if its is not None and its.shape != (outputs,):
            _refuse(function, f"{vector} must be (out,) = ({outputs},)", str(tuple(its.shape)), "one number an output")


def check_chosen(
    function: str, x: Tensor, weight_t: Tensor | None, bias: Tensor | None, numbers: tuple[str, Tensor | None],
    pattern: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Refuse what :func:`dynattn.ops.linear.linear_nm_act`, ``linear_threshold`` and ``nm_keep`` cannot take.

    Args:
        function: the caller's name.
        x, weight_t, bias: its arguments; of a choice alone there is no weight.
        numbers: the name of the argument by which inputs are chosen, and what was given.
        pattern: ``n`` and ``m``, and the numbers may be None; None where thresholds choose.

    Raises:
        TypeError, ValueError: as these say.
    """
    name, its = numbers
    asked = [("x", x)] if function == "nm_keep" else [("x", x), ("weight_t", weight_t)]
    needed = pattern is None
    _check_tensors(function, *asked, *([numbers] if needed else []), optional=(("bias", bias), numbers))
    if weight_t is None and x.dim() != 2:
        _refuse(function, "x must be (tokens, in)", str(tuple(x.shape)), "flatten leading dimensions, x.flatten(0, -2)")
    if weight_t is not None:
        outputs = _check_shapes(function, x, weight_t, True)
        if weight_t.dtype == torch.int8:
            _refuse_dtypes(function, "weight_t", x, weight_t)
        _check_dtypes(function, "weight_t", x, weight_t, bias, None)
        if bias is not None and bias.shape != (outputs,):
            _refuse(function, f"bias must be (out,) = ({outputs},)", str(tuple(bias.shape)), "one number an output")
    elif not x.is_floating_point():
        _refuse(function, "x must be floating point", str(x.dtype), "convert with .to()", TypeError)
    inputs = x.shape[1]
    if its is not None and its.dtype != torch.float32:
        _refuse(function, f"{name} must be float32", str(its.dtype), "convert with .to()", TypeError)
    if its is not None and its.shape != (inputs,) and not (needed and its.shape == (1,)):
        rule = f"(1,) or (in,) = ({inputs},)" if needed else f"(in,) = ({inputs},)"
        _refuse(function, f"{name} must be {rule}", str(tuple(its.shape)), "one number an input")
    if pattern is not None:
        _check_pattern(function, *pattern)


def check_packed(function: str, x: Tensor, packed: PackedNM, bias: Tensor | None) -> None:
    """Refuse what :func:`dynattn.ops.linear.linear_nm_weight` cannot take.

    Args:
        function: the caller's name.
        x, packed, bias: its arguments.

    Raises:
        TypeError, ValueError: as it says.
    """
    if not isinstance(packed, PackedNM):
        kind = type(packed).__name__
        _refuse(function, "packed must be what pack_nm returns", kind, "pack the weight with pack_nm()", TypeError)
    _check_tensors(function, ("x", x), ("packed.values", packed.values), optional=(("bias", bias),))
    if x.dim() != 2 or x.shape[1] != packed.inputs:
        _refuse(
            function, f"x must be (tokens, in) = (tokens, {packed.inputs})", str(tuple(x.shape)),
            "flatten leading dimensions with x.flatten(0, -2)",
        )  # fmt: skip
    _check_dtypes(function, "packed", x, packed.values, bias, None)
    outputs = packed.values.shape[0]
    if bias is not None and bias.shape != (outputs,):
        _refuse(function, f"bias must be (out,) = ({outputs},)", str(tuple(bias.shape)), "one number an output")


def _check_pattern(function: str, n: int, m: int) -> None:
    """N of M inputs."""
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in (n, m)):
        _refuse(function, "n and m must be ints", f"{n!r} and {m!r}", "try n=2, m=4", TypeError)
    if not 1 <= n < m <= MOST_OF_GROUP:
        _refuse(
            function, f"n must be at least 1 and below m, and m at most {MOST_OF_GROUP}", f"{n} of {m}",
            "try n=2, m=4; of n == m nothing is left out",
        )  # fmt: skip


def _check_shapes(function: str, x: Tensor, weight: Tensor, inputs_first: bool) -> int:
    """Both are matrices, of as many inputs; the number of outputs."""
    name = "weight_t" if inputs_first else "weight"
    if x.dim() != 2 or weight.dim() != 2:
        shape = "(in, out)" if inputs_first else "(out, in)"
        _refuse(
            function, f"x must be (tokens, in) and {name} {shape}",
            f"{tuple(x.shape)} and {tuple(weight.shape)}", "flatten leading dimensions with x.flatten(0, -2)",
        )  # fmt: skip
    inputs, outputs = weight.shape if inputs_first else weight.shape[::-1]
    if x.shape[1] != inputs:
        _refuse(
            function, f"x and {name} must have as many inputs", f"{x.shape[1]} and {inputs}",
            f"pass {name} as {'weight.t()' if inputs_first else 'the layer stores it'}",
        )  # fmt: skip
    return outputs


def _check_tensors(function: str, *asked: tuple[str, Any], optional: tuple[tuple[str, Any], ...]) -> None:
    """All are tensors, on one device."""
    device = getattr(asked[0][1], "device", None)
    given = (*asked, *(pair for pair in optional if pair[1] is not None))
    for name, x in given:
        if not isinstance(x, Tensor):
            _refuse(function, f"{name} must be a tensor", type(x).__name__, "convert with torch.as_tensor()", TypeError)
        if x.device != device:
            found = ", ".join(f"{name} on {x.device}" for name, x in given if isinstance(x, Tensor))
            _refuse(function, "all tensors must be on one device", found, "move them with .to()")


def _check_dtypes(
    function: str, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> None:
    if not x.is_floating_point():
        _refuse(function, "x must be floating point", str(x.dtype), "convert with .to()", TypeError)
    if weight.dtype == torch.int8 and (scale is None or scale.dtype != torch.float32):
        found = None if scale is None else scale.dtype
        _refuse(function, f"scale must be float32 where {name} is int8", str(found), "one factor an output", TypeError)
    if weight.dtype != torch.int8 and scale is not None:
        remedy = "leave scale out, or quantise the weight"
        _refuse(function, f"scale goes with an int8 {name}", str(weight.dtype), remedy, TypeError)
    if weight.dtype not in (x.dtype, torch.int8):
        _refuse_dtypes(function, name, x, weight)
    if bias is not None and bias.dtype != x.dtype:
        _refuse_dtypes(function, "bias", x, bias)


def _refuse_dtypes(function: str, name: str, x: Tensor, other: Tensor) -> NoReturn:
    _refuse(
        function, f"x and {name} must share one dtype", f"{x.dtype} and {other.dtype}", "convert with .to()", TypeError
    )


def _refuse(function: str, rule: str, found: str, remedy: str, kind: type[Exception] = ValueError) -> NoReturn:
    raise kind(f"{function}: {rule}: got {found}; {remedy}")
