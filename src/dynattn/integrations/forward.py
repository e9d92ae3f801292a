"""The ``forward`` of a module while it attends by dynattn: its calls of PyTorch's function go to :func:`attend`."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from dynattn.checks import is_causal_bias
from dynattn.functional import attention
from dynattn.integrations.transformers.calls import observers, replacements
from dynattn.integrations.transformers.masks import narrow
from dynattn.methods import Method

_BY_HAND: tuple[Any, ...] = (
    F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax, F.multi_head_attention_forward
)  # fmt: skip
"""Functions with which a module attends by itself."""


class Context:
    """What a context says to the modules that take part in it.

    Args:
        method: what to keep.
    """

    def __init__(self, method: Method) -> None:
        self.method, self.thread = method, threading.current_thread()
        self.told: set[str] = set()  # the classes of modules of which a warning was given


class NotCopied:
    """Refuses ``copy.deepcopy`` and pickling of the module that holds it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(
            "apply: a model must not be copied or pickled while it attends by dynattn, since the copy would run this "
            "model's layers, or keep the method for good: leave the context first, and apply the method to the copy"
        )


class Forward(NotCopied):
    """Stands in the place of a module's ``forward``.

    Args:
        module: the module.
        name: its name in the model.
        contexts: the contexts that are open for this module, with those that come and go later. The last one counts,
            so that it does not matter how many forwards stand around the module's own, nor in which order they end.
            Without any, the module's own forward runs.
        holds: whether other modules that take part may make the calls inside of it.
    """

    def __init__(self, module: nn.Module, name: str, contexts: list[Context], holds: bool) -> None:
        self.module, self.name, self.contexts = module, name, contexts
        inner: Callable[..., Any] = module.forward
        self.inner = inner.inner if isinstance(inner, Forward) else inner
        self.holds = holds or (len(contexts) > 1 and not isinstance(inner, Forward))
        self.__wrapped__ = self.inner  # so that the signature is the module's own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.contexts:  # someone else's forward, which is there to stay, calls this one
            return self.inner(*args, **kwargs)
        context = self.contexts[-1]
        mode = _Mode(self.module, context.method)
        with mode:
            out = self.inner(*args, **kwargs)
        if not mode.called and (mode.by_hand or not self.holds):
            self._tell(mode.by_hand, context)
        return out

    def replicate(self) -> nn.Module:
        """What ``torch.nn.parallel.replicate`` asks a module for; the replica attends by its own parameters."""
        replica = type(self.module)._replicate_for_data_parallel(self.module)
        own = vars(replica)
        del own["forward"], own["_replicate_for_data_parallel"]
        if getattr(self.inner, "__self__", None) is not self.module:  # someone else's forward
            own["forward"] = self.inner
        own["forward"] = Forward(replica, self.name, self.contexts, self.holds)
        return replica

    def _tell(self, by_hand: bool, context: Context) -> None:
        kind = type(self.module).__name__
        whose = f"{self.name} ({kind})" if self.name else kind
        if by_hand and not self.holds:
            raise RuntimeError(
                f"apply: modules that take part must call scaled_dot_product_attention: {whose} called a softmax in "
                "its place, and attended densely; switch the module to its fused path, as dynattn.integrations.timm "
                "does in timm's models, or leave the module out of the model that is given"
            )
        _warn(context.told, kind, whose)


class _Mode(TorchFunctionMode):
    """Sends calls of ``scaled_dot_product_attention`` to dynattn."""

    def __init__(self, module: nn.Module, method: Method) -> None:
        super().__init__()
        self.module, self.method = module, method
        self.called = self.by_hand = False
        self.grad = torch.is_grad_enabled()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.called = True
            if self.grad and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
                _refuse_checkpoint(self.module)
            # What dynattn calls in turn is no call of a module around this one.
            with nullcontext() if types else torch._C.DisableTorchFunction():
                return attend(self.module, self.method, *args, **(kwargs or {}))
        if any(func is one for one in _BY_HAND):
            self.by_hand = True
        if func is Tensor.unflatten:  # torch.compile cannot trace this method under a mode
            func = torch.unflatten
        return func(*args, **(kwargs or {}))


def attend(
    module: nn.Module,
    method: Method,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """:func:`dynattn.attention` with the arguments, and the broadcasting, of ``scaled_dot_product_attention``.

    Args:
        module: the module that calls.
        method: what to keep.
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa: as PyTorch's function takes them, with
            any number of leading dimensions. A method that tells heads apart takes the last of these for them.

    Returns:
        (…, q_len, value_dim); 0 in rows with nothing allowed.

    Raises:
        TypeError: an input is nested.
        ValueError: both a mask and ``is_causal`` are given, or shapes do not fit.
    """
    if query.is_nested or key.is_nested or value.is_nested:
        raise TypeError(
            "scaled_dot_product_attention: query, key and value must not be nested where dynattn attends: got a nested "
            "tensor; pad them, and forbid the padding by an attn_mask"
        )
    if is_causal and attn_mask is not None:
        raise ValueError(
            "scaled_dot_product_attention: attn_mask must be None with is_causal=True: got both; put what is causal "
            "into the mask"
        )
    if is_causal_bias(attn_mask):
        attn_mask, is_causal = _of_bias(attn_mask, query.device)
    grouped = enable_gqa and query.shape[-3] != key.shape[-3]
    if not grouped:
        lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        query, key, value = (x.expand(*lead, -1, -1) for x in (query, key, value))
    lead, pair = query.shape[:-2], (query.shape[-2], key.shape[-2])
    if is_causal and pair[0] != pair[1]:  # aligned top-left
        attn_mask, is_causal = torch.ones(pair, dtype=torch.bool, device=query.device).tril(), False
    mask = attn_mask if attn_mask is None or attn_mask.dim() > 1 else torch.atleast_2d(attn_mask)
    if mask is not None and len(lead) != 2:
        mask = _four(narrow(mask) if mask.shape[-2] == 1 else mask, lead)
    elif mask is not None:
        mask = narrow(mask)
    query, key, value = (_four(x, x.shape[:-2]) for x in (query, key, value))
    for change in replacements:
        method = change(module, method)
    for observe in observers:
        observe(module, query, key, value, method, mask, is_causal, scale)
    out = attention(query, key, value, method, attn_mask=mask, causal=is_causal, scale=scale, dropout_p=dropout_p)
    return out.reshape(*lead, *out.shape[-2:])


def _of_bias(bias: Any, device: torch.device) -> tuple[Tensor | None, bool]:
    """The mask that a ``CausalBias`` stands for, or that attention is causal, aligned top-left."""
    if bias.seq_len_q == bias.seq_len_kv or bias.variant.name == "UPPER_LEFT":
        return None, True
    return bias._materialize(device), False


def _four(x: Tensor, lead: Iterable[int]) -> Tensor:
    """(batch, heads, …, …): the leading dimensions but the last are one."""
    lead = tuple(lead)
    x = x.expand(*lead, *x.shape[-2:])
    while len(lead) < 2:
        lead, x = (1, *lead), x.unsqueeze(0)
    return x if len(lead) == 2 else x.flatten(0, len(lead) - 2)


def _refuse_checkpoint(module: nn.Module) -> None:
    """Refuse a call that ``backward()`` would make again, outside of the module's forward, where it would be dense."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not Forward.__call__.__code__:
        if frame.f_code is CheckpointFunction.forward.__code__:
            raise RuntimeError(
                "apply: a module that takes part must not be checkpointed inside its own forward with "
                f"use_reentrant=True: {type(module).__name__} is, and its gradients would be those of dense attention; "
                "turn its checkpointing off, and checkpoint the whole module"
            )
        frame = frame.f_back


def _warn(told: set[str], kind: str, whose: str) -> None:
    """Warn once for each class."""
    if kind not in told:
        told.add(kind)
        warnings.warn(
            f"apply: {whose} is said to take part, but its forward made no call of scaled_dot_product_attention: if it "
            "attends, it attends densely, by a function of its own",
            stacklevel=2,
        )


# This is all that torch.compiler.assume_constant_result does, except for importing torch._dynamo, which takes a second.
_warn.__dict__["_dynamo_marked_constant"] = True
