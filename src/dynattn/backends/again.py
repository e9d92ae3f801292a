"""Short calls that are repeated: attention on a CPU whose checks, route and arguments an earlier call has settled.

A call of one head of 64 tokens takes less time in arithmetic than in Python. All that Python finds out depends only on
shapes, strides and options. So the result, a plan, is kept under those as its key. No tensor of a call is ever kept,
and never more than ``_MOST`` plans. A call that is not plain (a mask's gradient, dropout, autocast, a compiler,
subclasses of tensors) has no key, and goes the way of every other call. The answer is the same, since the same kernel
gets the same arguments. Where the kernels of N:M attention do not compute a call as its tensors lie, the plan is the
backend, which is called without checks and route.

So are the gradients. Where a backward is not plain (it is to be differentiated again, mapped by ``vmap`` or recorded,
or saved tensors came back otherwise than they went), it goes through the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor

from dynattn.backends.base import Backend, Choosing
from dynattn.backends.problem import Call
from dynattn.kernels import cpu
from dynattn.kernels.pattern import BlockRule, Pattern, RowRule
from dynattn.methods.block_mass import BlockMass
from dynattn.methods.block_skip import BlockSkip
from dynattn.methods.block_topk import BlockTopK
from dynattn.methods.mass import Mass
from dynattn.methods.nm import NM
from dynattn.methods.threshold import Threshold
from dynattn.methods.topk import TopK
from dynattn.methods.window import Window
from dynattn.ops import buffers
from dynattn.ops.arguments import expanded, rows_contiguous
from dynattn.ops.library import unobserved
from dynattn.ops.nm import BACKWARD

_MOST = 512
_METHODS = (NM, Window, TopK, Threshold, Mass, BlockTopK, BlockMass, BlockSkip)
"""Methods of numbers and names, soon hashed."""
_plans: dict[Hashable, Prepared | PreparedTraining | Settled] = {}


class Settled(NamedTuple):
    """A call whose checks are done and whose backend is known.

    Attributes:
        run: gives the output for query, key, value and mask.
    """

    run: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Prepared(NamedTuple):
    """What a call needs besides its tensors.

    Attributes:
        make: gives the output to fill for the query; None where the output has another shape, or is not contiguous.
        kernel: the function of the library.
        arguments: its arguments, except for the addresses.
    """

    make: Callable[[Tensor], Tensor] | None
    kernel: Callable[[bytes], int]
    arguments: bytes

    def output(self, query: Tensor, value: Tensor) -> Tensor:
        """The output, to fill."""
        return buffers.output(query, value) if self.make is None else self.make(query)

    def run(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Run the kernel, and return the output."""
        out = self.output(query, value)
        cpu.forward_again(self.kernel, query, key, value, attn_mask, out, self.arguments)
        return out


class PreparedTraining(NamedTuple):
    """The same for a call whose gradients will be asked for.

    Attributes:
        forward: what the forward needs.
        rows: one element in the shape of the logsumexp, to make that from.
        make: gives the gradient to fill for query, key or value.
        strides: those of query, key, value, mask and output, which the backward must find again; None where there is no
            mask, and all others are contiguous.
        gradients: the arguments of the backward that follow those of the forward and the strides of the output's
            gradient, except for the addresses.
        operator: the arguments of the backward's operator behind the tensors.
    """

    forward: Prepared
    rows: Tensor
    make: Callable[[Tensor], Tensor]
    strides: tuple[tuple[int, ...], ...] | None
    gradients: bytes
    operator: tuple[Any, ...]

    def run(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Run the kernel, and return the output, whose gradient is known."""
        try:
            return _apply(query, key, value, attn_mask, self)
        except RuntimeError:
            if not any(map(is_functorch_wrapped_tensor, (query, key, value))):
                raise
            return cast(Tensor, _Attention.apply(query, key, value, attn_mask, self))  # which unwraps them


class _Attention(torch.autograd.Function):
    """A call and its backward, without the dispatcher. It saves what the operator's own derivative saves, in the same
    order, so that a call and its repetition for a checkpoint may take either way."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, plan: PreparedTraining
    ) -> Tensor:
        out = plan.forward.output(query, value)
        logsumexp = buffers.packed_like(plan.rows)
        forward = plan.forward
        cpu.forward_again(forward.kernel, query, key, value, attn_mask, out, forward.arguments, logsumexp)
        ctx.save_for_backward(out, logsumexp, query, key, value, attn_mask)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        out, logsumexp, query, key, value, attn_mask = ctx.saved_tensors
        plan = ctx.plan
        plain = (
            _lie_alike(plan, query, key, value, attn_mask, out)
            and not torch.is_grad_enabled()
            and unobserved(grad_out, query, out)
            and not is_legacy_batchedtensor(grad_out)  # of is_grads_batched
        )
        if not plain:
            tensors = (grad_out, torch.zeros_like(logsumexp), out, logsumexp, query, key, value, attn_mask, None)
            return *BACKWARD.operator(*tensors, *plan.operator)[:3], None, None
        gradients = (plan.make(query), plan.make(key), plan.make(value))
        cpu.nm_backward_again(
            rows_contiguous(grad_out), query, key, value, attn_mask, out, logsumexp, gradients, plan.forward.arguments,
            plan.gradients,
        )  # fmt: skip
        return *gradients, None, None


# What Function.apply comes to where no transform is at work, which a call that has a plan has made sure of. A tensor
# that an ended transform has left behind has no memory, and is an error here.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _Attention).apply  # pyright: ignore[reportAttributeAccessIssue]


def _lie_alike(
    plan: PreparedTraining, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, out: Tensor
) -> bool:
    """Whether saved tensors came back as they went."""
    if plan.strides is None:
        return query.is_contiguous() and key.is_contiguous() and value.is_contiguous() and out.is_contiguous()
    return _strides(query, key, value, attn_mask, out) == plan.strides


def _strides(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, out: Tensor
) -> tuple[tuple[int, ...], ...]:
    mask = () if attn_mask is None else attn_mask.stride()
    return query.stride(), key.stride(), value.stride(), mask, out.stride()


def key_of(
    query: Any, key: Any, value: Any, attn_mask: Any, method: Any, causal: Any, scale: Any, backend: Any, special: bool
) -> Hashable | None:
    """The key under which the plan of a call is kept; None for a call that is not plain.

    Args:
        query, key, value, attn_mask, method, causal, scale, backend: as :func:`dynattn.attention` is given them, not
            checked.
        special: whether any other argument was given.
    """
    if (
        special
        or type(method) not in _METHODS
        or not unobserved(query, key, value, attn_mask)
        or torch.is_autocast_enabled("cpu")
        or type(causal) is not bool
        or (scale is not None and type(scale) is not float)
        or type(backend) is not str
        or not (query.is_cpu and key.is_cpu and value.is_cpu)
        or not (attn_mask is None or _is_plain_mask(attn_mask))
    ):
        return None
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    try:
        return (
            query.shape, key.shape, value.shape, query.stride(), key.stride(), value.stride(), query.dtype, key.dtype,
            value.dtype, method, causal, scale, backend, torch.get_num_threads(), trains,
            None if attn_mask is None else (attn_mask.shape, attn_mask.stride(), attn_mask.dtype),
        )  # fmt: skip
    except RuntimeError:  # nested and compressed tensors have no such thing
        return None


def _is_plain_mask(attn_mask: Tensor) -> bool:
    """Whether a plan may be kept for calls with such a mask."""
    return attn_mask.is_cpu and not (attn_mask.requires_grad and torch.is_grad_enabled())


def find(key: Hashable) -> Prepared | PreparedTraining | Settled | None:
    """The plan that is kept under ``key``, or None."""
    return _plans.get(key)


def remember(key: Hashable, chosen: Backend, call: Call) -> None:
    """Keep the plan of a call: a kernel's arguments, where one computes it as its tensors lie, or the backend."""
    plan = _prepared(chosen, call) if all(x.stride(-1) == 1 for x in call[:3]) else None
    if plan is None:
        run = chosen.settled(call)
        if run is None:
            return
        plan = Settled(run)
    if len(_plans) >= _MOST:
        _plans.clear()
    _plans[key] = plan


def _prepared(chosen: Backend, call: Call) -> Prepared | PreparedTraining | None:
    """The arguments of the kernel that computes a call, where there is one."""
    query, value = call.query, call.value
    kernel, choosing = chosen.kernel(call), chosen.choosing_kernel(call)
    if kernel is None and choosing is None:
        return None
    out = buffers.output(query, value)
    tensors = (query, call.key, value, expanded(call.attn_mask, query, call.key), out)
    make = buffers.maker(query) if query.is_contiguous() and out.shape == query.shape else None
    if kernel is None:
        return Prepared(make, *_choosing(cast(Choosing, choosing), tensors))
    forward = Prepared(make, cpu.forward("nm_forward"), cpu.prepare_nm_forward(*tensors, *kernel, call.needs_grad))
    return _training(forward, *kernel, call, out) if call.needs_grad else forward


def _choosing(
    kernel: Choosing, tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]
) -> tuple[Callable[[bytes], int], bytes]:  # fmt: skip
    """The function that makes a choice of its own, and its arguments."""
    rule, pattern, isa = kernel
    if isinstance(rule, RowRule):
        return cpu.forward("row_forward"), cpu.prepare_row_forward(*tensors, rule, pattern, isa)
    if isinstance(rule, BlockRule):
        return cpu.forward("block_forward"), cpu.prepare_block_forward(*tensors, rule, pattern, isa)
    return cpu.forward("skip_forward"), cpu.prepare_skip_forward(*tensors, rule, pattern, isa)


def _training(forward: Prepared, pattern: Pattern, isa: str, call: Call, out: Tensor) -> PreparedTraining:
    """What the backward needs besides."""
    query = call.query
    inputs = (query, call.key, call.value)
    contiguous = all(x.is_contiguous() for x in inputs)
    simple = contiguous and out.is_contiguous() and call.attn_mask is None
    strides = None if simple else _strides(query, call.key, call.value, call.attn_mask, out)
    gradients = cpu.prepare_nm_backward(*(buffers.gradient(x) for x in inputs))
    rows = torch.empty((), dtype=torch.float32, device="cpu").expand(query.shape[:3])
    make = buffers.maker(*inputs) if contiguous else buffers.gradient
    return PreparedTraining(forward, rows, make, strides, gradients, (*pattern, False, f"cpu-{isa}"))
