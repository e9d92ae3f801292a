"""Defines the ``dynattn`` operators of PyTorch, and gives all of them their derivatives.

An operator is defined by two schemas, its own and that of its backward, ``<name>_backward``. An argument of the
backward has the name of an input or a result of the forward, or is called ``grad_<result>`` or ``mask_needs_grad``. A
result of the backward has the name of the input whose gradient it is. So positions are written down only in the
schemas.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dynattn.ops import sharding

library = torch.library.Library("dynattn", "DEF")

INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? seed"
"""The schema of every operator begins with these."""

CALL = "str method, bool causal, Scalar scale, Scalar dropout_p"
"""In the schemas of operators that take a method by its name, these follow."""

RESULTS = "Tensor out, Tensor logsumexp, Tensor kept_mass, Tensor kept, Tensor allowed"
"""Every operator that keeps pairs returns these first."""

GRADIENTS = "Tensor grad_out, Tensor grad_logsumexp"
"""The schema of every backward begins with these."""


# Looked up once: short calls ask them all, and the way to each takes as long as its answer.
_is_compiling, _modes = torch.compiler.is_compiling, torch._C._len_torch_dispatch_stack
_transforms_active, _tracing_state = torch._C._are_functorch_transforms_active, torch._C._get_tracing_state
_profiler_enabled = torch.autograd._profiler_enabled  # pyright: ignore[reportPrivateImportUsage]

_AUTOGRAD_KEYS = tuple(
    getattr(torch._C.DispatchKey, name) for name in ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView")
)


class Schema(NamedTuple):
    """An operator, and the names of its arguments and results.

    Attributes:
        operator: the operator, as ``torch.ops`` has it.
        Arguments: a named tuple of its arguments, in order.
        Results: a named tuple of its results, in order.
        tensors: the names of the arguments that are tensors.
    """

    operator: Any
    Arguments: Any
    Results: Any
    tensors: frozenset[str]


def define(name: str, arguments: str, results: str) -> Schema:
    """Define an operator.

    Args:
        name: its name, without the namespace.
        arguments: its arguments, as a schema has them between its brackets.
        results: its results, written in the same way, each with a name.
    """
    library.define(f"{name}({arguments}) -> ({results})")
    operator = getattr(torch.ops.dynattn, name).default
    taken, given = operator._schema.arguments, operator._schema.returns
    return Schema(
        operator,
        namedtuple("Arguments", [x.name for x in taken]),  # the fields are the schema's
        namedtuple("Results", [x.name for x in given]),
        frozenset(x.name for x in taken if "Tensor" in str(x.type)),
    )


def complete(
    forward: Schema, backward: Schema, fake: Callable[..., Any], backward_fake: Callable[..., Any], split: bool = True
) -> None:
    """Give an operator and its backward, which has no derivative, their shapes and derivatives.

    Args:
        forward: the operator.
        backward: its backward.
        fake: gives the operator's outputs without their values.
        backward_fake: gives those of the backward.
        split: whether heads and samples do not depend on each other, so that shards of a ``DTensor`` can be computed
            apart.
    """
    for schema, shapes, function in (
        (forward, fake, _differentiable(forward, Derivative(forward, backward))),
        (backward, backward_fake, _once_differentiable(backward)),
    ):
        name = schema.operator.name()
        torch.library.register_fake(name, shapes, lib=library)
        library.impl(name.removeprefix("dynattn::"), _autograd(schema, function), "Autograd", with_keyset=True)
        (sharding.split if split else sharding.gather)(schema)


def follow(schema: Schema, definition: Callable[..., Any]) -> None:
    """Give an operator without a backward the derivatives of its definition in plain PyTorch, of any order and mode.

    Args:
        schema: the operator.
        definition: takes the operator's arguments; called in its place wherever a derivative is asked for.
    """

    def kernel(keyset: Any, *arguments: Any) -> Any:
        if _are_dual(arguments) or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            return definition(*arguments)
        return _below_autograd(schema, keyset, arguments)

    library.impl(schema.operator.name().removeprefix("dynattn::"), kernel, "Autograd", with_keyset=True)


def unobserved(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> bool:
    """Whether an operator's implementation may be called without the dispatcher, because nobody would see the
    difference.

    The way through the dispatcher, into Python and out again twice, takes longer than the arithmetic of a short call.
    No compiler, tracer, transform, mode or profiler may be at work. There may be no dual numbers, no tensor subclass,
    and no tensor whose memory holds its negative (``is_neg``), which the dispatcher resolves. That no gradient is asked
    for is not checked here: the caller knows it.
    """
    return (
        type(query) is type(key) is type(value) is Tensor
        and unwatched()  # first: a compiler cannot trace what follows
        and not (query.is_neg() or key.is_neg() or value.is_neg())
        and (attn_mask is None or (type(attn_mask) is Tensor and not attn_mask.is_neg()))
    )


def unwatched() -> bool:
    """Whether no compiler, tracer, transform, mode or profiler is at work, and there are no dual numbers: what
    :func:`unobserved` asks for besides plain tensors."""
    return (
        not _is_compiling()
        and forward_ad._current_level < 0
        and _modes() == 0
        and not _transforms_active()
        and _tracing_state() is None
        and not _profiler_enabled()
    )


class Derivative:
    """What an operator's ``torch.autograd.Function`` keeps for the backward, and how it calls the backward.

    Args:
        forward: the operator.
        backward: its backward.
    """

    def __init__(self, forward: Schema, backward: Schema) -> None:
        at = {name: index for index, name in enumerate((*forward.Arguments._fields, *forward.Results._fields))}
        self._forward, self._backward = forward, backward
        self._mask = forward.Arguments._fields.index("attn_mask")
        self._names = backward.Arguments._fields
        self._tensors = [name for name in self._names if name in at and name in backward.tensors]
        self._others = [name for name in self._names if name in at and name not in backward.tensors]
        self._kept_tensors = [at[name] for name in self._tensors]
        self._kept_others = [at[name] for name in self._others]
        self._constant = [i for i, name in enumerate(forward.Results._fields) if f"grad_{name}" not in self._names]

    def setup_context(self, ctx: Any, inputs: tuple, output: tuple) -> None:
        """Keep the arguments and results of a forward call that the backward takes."""
        output = output if isinstance(output, tuple) else (output,)
        everything = (*inputs, *output)
        ctx.save_for_backward(*[everything[i] for i in self._kept_tensors])
        ctx.others = [everything[i] for i in self._kept_others]
        ctx.mark_non_differentiable(*[output[i] for i in self._constant])
        ctx.set_materialize_grads(True)

    def gradients(self, ctx: Any, *of_results: Tensor, call: Any = None) -> tuple[Tensor | None, ...]:
        """The gradients of all arguments. ``call`` is called in place of the backward operator where it is given."""
        given = dict(zip(self._tensors, ctx.saved_tensors, strict=True))
        given.update(zip(self._others, ctx.others, strict=True))
        given.update((f"grad_{name}", x) for name, x in zip(self._forward.Results._fields, of_results, strict=True))
        if type(given["query"]) is not Tensor:
            given.update((name, sharding.like(given["query"], x)) for name, x in given.items() if "grad_" in name)
        given["mask_needs_grad"] = mask_needs_grad = ctx.needs_input_grad[self._mask]
        found = (call or self._backward.operator)(*[given[name] for name in self._names])
        by_name = dict(zip(self._backward.Results._fields, found, strict=True))
        if not mask_needs_grad:
            by_name.pop("attn_mask", None)
        return tuple(by_name.get(name) for name in self._forward.Arguments._fields)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """While active, autocast is off: float32 means float32.

    Args:
        device: the device of the tensors; the meta device has no autocast.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def recording(device: torch.device) -> Iterator[None]:
    """While active, autograd records within an operator, where the dispatcher has already switched it off. Autocast is
    off.

    Args:
        device: the device of the tensors.
    """
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in _AUTOGRAD_KEYS:
        excluded = excluded.remove(key)
    with (
        torch._C._ForceDispatchKeyGuard(included, excluded),
        torch.enable_grad(),
        no_autocast(device),
    ):
        yield


def refuse_second_derivatives(ctx: Any, *_: Any) -> None:
    """Raise, in place of a gradient of the gradient."""
    raise NotImplementedError(
        "attention: second derivatives are not offered; call backward() without create_graph, "
        "or use torch.nn.functional.scaled_dot_product_attention for this part of the model"
    )


def refuse_forward_mode(ctx: Any, *_: Any) -> None:
    """Raise, in place of a derivative in forward mode."""
    raise NotImplementedError(
        "attention: forward-mode derivatives (dual numbers, jvp, jacfwd, linearize, hessian) are not offered; use "
        "reverse mode: backward(), torch.func.grad, vjp or jacrev, jacobian(strategy='reverse-mode')"
    )


def _are_dual(arguments: tuple) -> bool:
    return forward_ad._current_level >= 0 and any(
        isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in arguments
    )


def _below_autograd(schema: Schema, keyset: Any, arguments: tuple) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return schema.operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _differentiable(schema: Schema, derivative: Derivative) -> type[torch.autograd.Function]:
    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
            results = _below_autograd(schema, keyset, arguments)
            derivative.setup_context(ctx, arguments, results)
            return results

        @staticmethod
        def backward(ctx: Any, *of_results: Tensor) -> Any:
            needs_input_grad = ctx.needs_input_grad
            return None, *derivative.gradients(_Shifted(ctx, needs_input_grad[1:]), *of_results)

    return Differentiable


class _Shifted:
    """A context that counts the operator's own arguments, without the dispatcher's keys in front of them."""

    def __init__(self, ctx: Any, needs_input_grad: tuple[bool, ...]) -> None:
        self.saved_tensors, self.others, self.needs_input_grad = ctx.saved_tensors, ctx.others, needs_input_grad


def _once_differentiable(schema: Schema) -> type[torch.autograd.Function]:
    class OnceDifferentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
            return _below_autograd(schema, keyset, arguments)

        backward = staticmethod(refuse_second_derivatives)

    return OnceDifferentiable


def _autograd(schema: Schema, function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The operator's kernel for autograd. It is that of ``torch.library.register_autograd``, but refuses dual numbers.

    PyTorch's own passes them on without their tangents, as if the derivative were 0.
    """

    def kernel(keyset: Any, *arguments: Any) -> Any:
        if type(arguments[0]) is not Tensor and sharding.is_sharded(arguments[0]):
            sharding.register()
        if _are_dual(arguments):
            refuse_forward_mode(None)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return function.apply(keyset, *arguments)
        return _below_autograd(schema, keyset, arguments)

    return kernel
