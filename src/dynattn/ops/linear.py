"""Linear layers of which inputs, outputs or weights are left out.

    linear_rows         y = (x ∘ E) Wᵀ + b      E: the inputs that each token keeps
    linear_nm_act       likewise                E: of every M inputs in a row the N largest |x_i| c_i
    linear_threshold    likewise                E: |x_i| > t_i
    linear_outputs      y = (x Wᵀ + b) ∘ E      E: the outputs that each token wants
    linear_nm_weight    y = x W̃ᵀ + b            W̃: N:M weights in packed form

With one token, or a few, a linear layer takes as long as its weights take to come from memory. For up to 8 tokens in
float32 or bfloat16 the CPU kernels read the weights that are asked for, and no others. With more it takes as long as
its products: in float32 the kernel of the first three computes those of the inputs that are kept, and no others.
Everything else is computed by the definitions in plain PyTorch, which autograd follows: more tokens of the last two or
in other dtypes, other devices, and whatever has a derivative. The answers are the same to rounding. One difference
shows where weights are not finite: an input that is left out is 0 in the definition, and 0 · ∞ is NaN; the kernel does
not compute it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from dynattn.ops import linear_again, linear_definitions, sharding, transforms
from dynattn.ops.library import Schema, define, follow, library
from dynattn.ops.linear_again import Plan
from dynattn.ops.linear_checks import check, check_chosen, check_packed
from dynattn.ops.nm_weights import PackedNM, pack_nm

__all__ = [
    "PackedNM", "linear_nm_act", "linear_nm_weight", "linear_outputs", "linear_rows", "linear_threshold", "nm_keep",
    "pack_nm",
]  # fmt: skip

ROWS = define("linear_rows", "Tensor x, Tensor weight_t, Tensor? bias, Tensor keep, Tensor? scale", "Tensor out")
NM_ACT = define("linear_nm_act", "Tensor x, Tensor weight_t, Tensor? bias, Tensor? factors, int n, int m", "Tensor out")
THRESHOLD = define("linear_threshold", "Tensor x, Tensor weight_t, Tensor? bias, Tensor thresholds", "Tensor out")
OUTPUTS = define("linear_outputs", "Tensor x, Tensor weight, Tensor? bias, Tensor keep, Tensor? scale", "Tensor out")
NM_WEIGHT = define(
    "linear_nm_weight", "Tensor x, Tensor values, Tensor places, Tensor? bias, int n, int m", "Tensor out"
)


def linear_rows(
    x: Tensor, weight_t: Tensor, bias: Tensor | None = None, *, keep: Tensor, scale: Tensor | None = None
) -> Tensor:
    """A linear layer to which each token gives some of its inputs: ``(x ∘ keep) Wᵀ + bias``.

    A token's result is the same to the bit for any number of threads, and whatever the other tokens of the call are, as
    long as their number asks for the same kernel. What an input that is left out holds does not matter, NaN included;
    NaN in one that is kept reaches all outputs.

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
    key = linear_again.key_of("linear_rows", None, x, weight_t, bias, keep, scale)
    plan = linear_again.find(key)
    if plan is None:
        check("linear_rows", x, weight_t, bias, keep, scale, inputs_first=True)
        plan = _planned(key, "linear_rows", x, weight_t, bias, keep, scale)
    if plan is None:
        return _run(ROWS, linear_definitions.rows, x, weight_t, bias, keep, scale)
    return plan.run(x, weight_t, bias, keep, None, None, scale)


def linear_nm_act(
    x: Tensor, weight_t: Tensor, bias: Tensor | None = None, *, n: int, m: int, factors: Tensor | None = None
) -> Tensor:
    """A linear layer to which each token gives N of every M inputs in a row: ``(x ∘ NM(|x| ∘ factors)) Wᵀ + bias``.

    Of the M inputs those with the ``n`` largest ``|x_i| · factors_i`` stay; ties go to the first. A NaN always stays,
    and so it reaches all outputs. A last group of fewer keeps as many of them as there are. The choice is a constant to
    derivatives. Results are as :func:`linear_rows` promises. There is a kernel for M of 2, 4, 8 and 16.

    Args:
        x: (..., in), with at least one leading dimension.
        weight_t, bias: as in :func:`linear_rows`, in the dtype of ``x``.
        n, m: 1 <= n < m <= 32.
        factors: float32 (in,), at least 0, by which sizes are weighed; None for 1.

    Returns:
        (..., out), in the dtype of ``x``.

    Raises:
        TypeError, ValueError: as :func:`linear_rows`, or ``n`` or ``m`` is out of its range.
    """
    key = linear_again.key_of("linear_nm_act", (n, m), x, weight_t, bias, factors)
    plan = linear_again.find(key)
    if plan is None:
        flat = _flattened(x)
        check_chosen("linear_nm_act", flat, weight_t, bias, ("factors", factors), (n, m))
        plan = _planned(key, "linear_rows", flat, weight_t, bias, factors, n=n, m=m, like=x)
    if plan is None:
        return _as(x, _run(NM_ACT, linear_definitions.nm_act, _flattened(x), weight_t, bias, factors, n, m))
    return plan.run(x, weight_t, bias, None, None, factors)


def linear_threshold(x: Tensor, weight_t: Tensor, bias: Tensor | None = None, *, thresholds: Tensor) -> Tensor:
    """A linear layer to which each token gives its large inputs: ``(x ∘ (|x| > thresholds)) Wᵀ + bias``.

    A NaN always stays, and so it reaches all outputs. The choice is a constant to derivatives. Results are as
    :func:`linear_rows` promises.

    Args:
        x, weight_t, bias: as in :func:`linear_nm_act`.
        thresholds: float32, (1,) for all inputs or (in,).

    Returns:
        (..., out), in the dtype of ``x``.

    Raises:
        TypeError, ValueError: as :func:`linear_rows`.
    """
    key = linear_again.key_of("linear_threshold", None, x, weight_t, bias, thresholds)
    plan = linear_again.find(key)
    if plan is None:
        flat = _flattened(x)
        check_chosen("linear_threshold", flat, weight_t, bias, ("thresholds", thresholds))
        plan = _planned(key, "linear_rows", flat, weight_t, bias, thresholds, thresholds=thresholds, like=x)
    if plan is None:
        return _as(x, _run(THRESHOLD, linear_definitions.threshold, _flattened(x), weight_t, bias, thresholds))
    return plan.run(x, weight_t, bias, None, thresholds)


def nm_keep(x: Tensor, *, n: int, m: int, factors: Tensor | None = None) -> Tensor:
    """The choice of :func:`linear_nm_act`, for layers that share it: each is :func:`linear_rows` with this ``keep``.

    Args:
        x: (tokens, in).
        n, m, factors: as in :func:`linear_nm_act`.

    Returns:
        bool (tokens, in).

    Raises:
        TypeError, ValueError: as :func:`linear_nm_act`.
    """
    key = linear_again.key_of("nm_keep", (n, m), x, factors, constant=True)
    plan = linear_again.find(key)
    if plan is None:
        check_chosen("nm_keep", x, None, None, ("factors", factors), (n, m))
        plan = None if key is None else linear_again.plan_choice(x, factors, n, m)
        if key is None or plan is None:
            return linear_definitions.nm_kept(x, factors, n, m)
        linear_again.remember(key, plan)
    return plan.run(x, None, None, None, None, factors)


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
    key = linear_again.key_of("linear_outputs", None, x, weight, bias, keep, scale)
    plan = linear_again.find(key)
    if plan is None:
        check("linear_outputs", x, weight, bias, keep, scale, inputs_first=False)
        plan = _planned(key, "linear_outputs", x, weight, bias, keep, scale)
    if plan is None:
        return _run(OUTPUTS, linear_definitions.outputs, x, weight, bias, keep, scale)
    return plan.run(x, weight, bias, keep, None, None, scale)


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
    if type(packed) is not PackedNM:
        check_packed("linear_nm_weight", x, packed, bias)
    values, places, n, m = packed.values, packed.places, packed.n, packed.m
    key = linear_again.key_of("linear_nm_weight", (n, m, packed.inputs), x, values, bias, places)
    plan = linear_again.find(key)
    if plan is None:
        check_packed("linear_nm_weight", x, packed, bias)
        plan = _planned(key, "linear_nm_weight", x, values, bias, places, n=n, m=m)
    if plan is None:
        return _run(NM_WEIGHT, linear_definitions.nm_weight, x, values, places, bias, n, m)
    return plan.run(x, values, bias, None, None, None, None, places)


def _run(schema: Schema, definition: Any, *call: Any) -> Tensor:
    """A call that is not plain, by its operator, or by its definition where nobody needs to know of an operator.

    Args:
        schema, definition: the operator and what it stands for.
        call: its arguments, the input and the weight first.
    """
    x, weight = call[:2]
    if (
        x.device.type != "cpu"
        or not linear_again.has_kernel(x.shape[0], x.dtype, schema in (ROWS, NM_ACT, THRESHOLD))
        or transforms.active()
        or torch.is_autocast_enabled("cpu")
        or sharding.is_sharded(x)
        or sharding.is_sharded(weight)
    ):
        return definition(*call)
    return schema.operator(*call)


def _planned(
    key: Hashable | None, function: str, x: Tensor, weight: Tensor, *others: Tensor | None,
    thresholds: Tensor | None = None, n: int = 0, m: int = 0, like: Tensor | None = None,
) -> Plan | None:  # fmt: skip
    """The plan of a plain, checked call, kept from now on; None where no kernel takes the tensors as they are. The
    output has the leading dimensions of ``like``."""
    if key is None or not all(one is None or one.is_contiguous() for one in (x, *others)):
        return None
    plan = linear_again.plan(function, x, weight, thresholds, n, m)
    if plan is None:
        return None
    return linear_again.remember(key, plan if like is None else plan._replace(shape=(*like.shape[:-1], plan.shape[-1])))


def _flattened(x: Tensor) -> Tensor:
    """(tokens, in) of more leading dimensions."""
    return x.flatten(0, -2) if isinstance(x, Tensor) and x.dim() > 2 else x


def _as(x: Tensor, y: Tensor) -> Tensor:
    """An output with the leading dimensions of the input."""
    return y if x.dim() == 2 else y.unflatten(0, x.shape[:-1])


def _on_cpu(function: str, definition: Any, x: Tensor, weight: Tensor, bias: Tensor | None, **others: Any) -> Tensor:
    """What an operator gives on the CPU: by its kernel, or by its definition where there is none for such tensors."""
    plan = linear_again.plan(function, x, weight, others.get("thresholds"), others.get("n", 0), others.get("m", 0))
    if plan is None:
        return definition(x, weight, bias=bias, **others)
    packed = {name: tensor.contiguous() for name, tensor in others.items() if isinstance(tensor, Tensor)}
    return plan.run(x.contiguous(), weight, None if bias is None else bias.contiguous(), **packed)


def _rows(x: Tensor, weight_t: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None) -> Tensor:
    return _on_cpu("linear_rows", linear_definitions.rows, x, weight_t, bias, keep=keep, scale=scale)


def _nm_act(x: Tensor, weight_t: Tensor, bias: Tensor | None, factors: Tensor | None, n: int, m: int) -> Tensor:
    return _on_cpu("linear_rows", linear_definitions.nm_act, x, weight_t, bias, factors=factors, n=n, m=m)


def _threshold(x: Tensor, weight_t: Tensor, bias: Tensor | None, thresholds: Tensor) -> Tensor:
    return _on_cpu("linear_rows", linear_definitions.threshold, x, weight_t, bias, thresholds=thresholds)


def _outputs(x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None) -> Tensor:
    return _on_cpu("linear_outputs", linear_definitions.outputs, x, weight, bias, keep=keep, scale=scale)


def _nm_weight(x: Tensor, values: Tensor, places: Tensor, bias: Tensor | None, n: int, m: int) -> Tensor:
    return _on_cpu("linear_nm_weight", linear_definitions.nm_weight, x, values, bias, places=places, n=n, m=m)


def _fake_rows(x: Tensor, weight_t: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight_t.shape[1])


def _fake_outputs(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


for _schema, _kernel, _definition, _fake in (
    (ROWS, _rows, linear_definitions.rows, _fake_rows),
    (NM_ACT, _nm_act, linear_definitions.nm_act, _fake_rows),
    (THRESHOLD, _threshold, linear_definitions.threshold, _fake_rows),
    (OUTPUTS, _outputs, linear_definitions.outputs, _fake_outputs),
    (NM_WEIGHT, _nm_weight, linear_definitions.nm_weight, _fake_outputs),
):
    _name = _schema.operator.name()
    library.impl(_name.removeprefix("dynattn::"), _kernel, "CPU")
    library.impl(_name.removeprefix("dynattn::"), _definition, "CompositeExplicitAutograd")
    torch.library.register_fake(_name, _fake, lib=library)
    follow(_schema, _definition)
