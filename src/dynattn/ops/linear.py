"""Linear layers of a few tokens of which inputs, outputs or weights are left out: what is left out is not read.

    linear_rows         y = (x ∘ E) Wᵀ + b      E: the inputs that each token keeps
    linear_outputs      y = (x Wᵀ + b) ∘ E      E: the outputs that each token wants
    linear_nm_weight    y = x W̃ᵀ + b            W̃: N:M weights in packed form

With one token, or a few, a linear layer takes as long as its weights take to come from memory. For up to 8 tokens in
float32 or bfloat16 the CPU kernels read the weights that are asked for, and no others. Everything else is computed by
the definitions in plain PyTorch, which autograd follows: more tokens, other dtypes and devices, and whatever has a
derivative. The answers are the same to rounding. One difference shows where weights are not finite: an input that is
left out is 0 in the definition, and 0 · ∞ is NaN; the kernel does not compute it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.kernels import cpu
from dynattn.kernels.cpu import linear_calls
from dynattn.maths.scores import arithmetic_dtype
from dynattn.ops import sharding, transforms
from dynattn.ops.library import Schema, define, follow, library, unobserved
from dynattn.ops.linear_checks import check, check_packed
from dynattn.ops.nm_weights import PackedNM, pack_nm, unpacked

__all__ = ["PackedNM", "linear_nm_weight", "linear_outputs", "linear_rows", "pack_nm"]

_DTYPES = (torch.float32, torch.bfloat16)
_PLAIN = (Tensor, nn.Parameter)

ROWS = define("linear_rows", "Tensor x, Tensor weight_t, Tensor? bias, Tensor keep, Tensor? scale", "Tensor out")
OUTPUTS = define("linear_outputs", "Tensor x, Tensor weight, Tensor? bias, Tensor keep, Tensor? scale", "Tensor out")
NM_WEIGHT = define(
    "linear_nm_weight", "Tensor x, Tensor values, Tensor places, Tensor? bias, int n, int m", "Tensor out"
)


def linear_rows(
    x: Tensor, weight_t: Tensor, bias: Tensor | None = None, *, keep: Tensor, scale: Tensor | None = None
) -> Tensor:
    """A linear layer to which each token gives some of its inputs: ``(x ∘ keep) Wᵀ + bias``.

    A token's result is the same to the bit for any number of threads, and whatever the other tokens of the call are.
    What an input that is left out holds does not matter, NaN included; NaN in one that is kept reaches all outputs.

    Args:
        x: (tokens, in).
        weight_t: (in, out): what one input gives to all outputs is a row. ``layer.weight.t()`` is one, where the layer
            stores its weight as ``weight.t().contiguous().t()``. Any strides give the same answer; the kernel reads
            weights with contiguous rows. In the dtype of ``x``, or int8.
        bias: (out,), in the dtype of ``x``; or None.
        keep: bool (tokens, in).
        scale: float32 (out,), where weights are int8: output j has the weights ``scale[j] · weight_t[:, j]``.

    Returns:
        (tokens, out), in the dtype of ``x``.

    Raises:
        TypeError: an argument is no tensor, or the dtypes do not fit.
        ValueError: shapes or devices do not fit.
    """
    check("linear_rows", x, weight_t, bias, keep, scale, inputs_first=True)
    return _run(ROWS, _rows, _define_rows, x, weight_t, bias, keep, scale)


def linear_outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, keep: Tensor, scale: Tensor | None = None
) -> Tensor:
    """A linear layer of which each token wants some outputs: ``(x Wᵀ + bias) ∘ keep``; the others are 0.

    A token's result is the same to the bit for any number of threads, and whatever the other tokens of the call are.

    Args:
        x: (tokens, in).
        weight: (out, in), as a linear layer has it. Any strides give the same answer; the kernel reads weights with
            contiguous rows. In the dtype of ``x``, or int8.
        bias: (out,), in the dtype of ``x``; or None.
        keep: bool (tokens, out).
        scale: float32 (out,), where weights are int8: output j has the weights ``scale[j] · weight[j]``.

    Returns:
        (tokens, out), in the dtype of ``x``.

    Raises:
        As :func:`linear_rows`.
    """
    check("linear_outputs", x, weight, bias, keep, scale, inputs_first=False)
    return _run(OUTPUTS, _outputs, _define_outputs, x, weight, bias, keep, scale)


def linear_nm_weight(x: Tensor, packed: PackedNM, bias: Tensor | None = None) -> Tensor:
    """A linear layer with N:M weights in packed form: ``x W̃ᵀ + bias``.

    More than 8 tokens, and everything else that has no kernel, unpack the weights at every call.

    Args:
        x: (tokens, in).
        packed: the weights, from :func:`pack_nm`, in the dtype of ``x``.
        bias: (out,), in the dtype of ``x``; or None.

    Returns:
        (tokens, out), in the dtype of ``x``.

    Raises:
        TypeError, ValueError: as :func:`linear_rows`.
    """
    check_packed("linear_nm_weight", x, packed, bias)
    call = (x, packed.values, packed.places, bias, packed.n, packed.m)
    return _run(NM_WEIGHT, _nm_weight, _define_nm_weight, *call)


def _run(schema: Schema, kernel: Any, definition: Any, *call: Any) -> Tensor:
    """The kernel, without the dispatcher where nobody would see the difference; or the definition.

    Args:
        schema, kernel, definition: the operator, what it does on the CPU, and what it stands for.
        call: its arguments, the input and the weight first.
    """
    x, weight = call[:2]
    if (
        x.device.type != "cpu"
        or x.shape[0] > linear_calls.MAX_TOKENS
        or transforms.active()
        or torch.is_autocast_enabled("cpu")
        or sharding.is_sharded(x)
        or sharding.is_sharded(weight)
    ):
        return definition(*call)
    if (
        unobserved(x, x, x)
        and all(y is None or type(y) is int or (type(y) in _PLAIN and not y.is_neg()) for y in call)
        and not (torch.is_grad_enabled() and torch._C._any_requires_grad(*call))
    ):
        return kernel(*call)
    return schema.operator(*call)


def _define_rows(x: Tensor, weight_t: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None) -> Tensor:
    return _linear(x.masked_fill(~keep, 0), weight_t.t(), bias, scale)


def _define_outputs(x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None) -> Tensor:
    return _linear(x, weight, bias, scale).masked_fill(~keep, 0)


def _define_nm_weight(x: Tensor, values: Tensor, places: Tensor, bias: Tensor | None, n: int, m: int) -> Tensor:
    return nn.functional.linear(x, unpacked(values, places, n, m, x.shape[1]), bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    if scale is None:
        return nn.functional.linear(x, weight, bias)
    wide = arithmetic_dtype(x.dtype)  # weights of int8 are exact there, and the result is rounded once
    y = nn.functional.linear(x.to(wide), weight.to(wide)) * scale
    return (y if bias is None else y + bias).to(x.dtype)


def _kept(
    kernel: Any, definition: Any, fake: Any,
    x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None,
) -> Tensor:  # fmt: skip
    """The kernel for an output of the shape that ``fake`` has, or the definition."""
    if not _has_kernel(x, weight):
        return definition(x, weight, bias, keep, scale)
    out = fake(x, weight)
    kernel(x.contiguous(), weight, _contiguous(bias), keep.contiguous(), out, cpu.best_isa(), _contiguous(scale))
    return out


def _nm_weight(x: Tensor, values: Tensor, places: Tensor, bias: Tensor | None, n: int, m: int) -> Tensor:
    if not _has_kernel(x, values):
        return _define_nm_weight(x, values, places, bias, n, m)
    out = _fake_outputs(x, values)
    linear_calls.linear_nm_weight(
        x.contiguous(), values.contiguous(), places.contiguous(), _contiguous(bias), out, n, m, cpu.best_isa()
    )
    return out


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take such tensors; they are on the CPU."""
    return (
        x.dtype in _DTYPES
        and x.shape[0] <= linear_calls.MAX_TOKENS
        and x.numel() > 0
        and weight.numel() > 0
        and weight.stride(1) == 1
        and weight.stride(0) >= weight.shape[1]
        and cpu.is_available()
    )


def _fake_rows(x: Tensor, weight_t: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight_t.shape[1])


def _fake_outputs(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_rows = partial(_kept, linear_calls.linear_rows, _define_rows, _fake_rows)
_outputs = partial(_kept, linear_calls.linear_outputs, _define_outputs, _fake_outputs)

for _schema, _kernel, _definition, _fake in (
    (ROWS, _rows, _define_rows, _fake_rows),
    (OUTPUTS, _outputs, _define_outputs, _fake_outputs),
    (NM_WEIGHT, _nm_weight, _define_nm_weight, _fake_outputs),
):
    _name = _schema.operator.name()
    library.impl(_name.removeprefix("dynattn::"), _kernel, "CPU")
    library.impl(_name.removeprefix("dynattn::"), _definition, "CompositeExplicitAutograd")
    torch.library.register_fake(_name, _fake, lib=library)
    follow(_schema, _definition)
