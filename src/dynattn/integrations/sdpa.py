"""Modules that call ``torch.nn.functional.scaled_dot_product_attention`` attend by dynattn, for as long as a context.

What is replaced is the ``forward`` of single modules of one model. While it runs, the calls of that function which this
thread makes go to :func:`dynattn.attention`, whatever code they come from: a module, or a processor of diffusers.
``torch.nn.MultiheadAttention`` becomes :class:`dynattn.nn.MultiheadAttention` meanwhile, with the same weights.

Contexts of one model nest: the inner one counts, they may end in any order, and all of them belong to one thread.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from dynattn.integrations.forward import Context, Forward, NotCopied
from dynattn.integrations.transformers import classes
from dynattn.integrations.transformers.coverage import PREFIX, Coverage, Part, kinds_of
from dynattn.methods import Method, PerLayer
from dynattn.methods.registry import given
from dynattn.nn import MultiheadAttention
from dynattn.pruning.replaced import replace

Settings = Iterable[tuple[Any, str, Any]]
"""Objects, names of their attributes, and values."""

_entering = threading.RLock()
_contexts: weakref.WeakKeyDictionary[nn.Module, list[Context]] = weakref.WeakKeyDictionary()
"""The contexts that are open, by the modules that take part in them; an inner one stands behind an outer one."""


@contextmanager
def applied(
    model: nn.Module, method: Method | str, parts: dict[str, nn.Module], own: Iterable[Part], settings: Settings = ()
) -> Iterator[Coverage]:
    """While active, some modules of a model attend by dynattn.

    Args:
        model: the model.
        method: what to keep, or its short name.
        parts: the modules that call ``scaled_dot_product_attention``, by their names.
        own: the modules that keep attention of their own.
        settings: objects, names of their attributes, and what these are meanwhile.

    Yields:
        Which modules take part, and which keep attention of their own.

    Raises:
        TypeError: ``method`` is neither a method nor a name.
        ValueError: no module takes part, the method is one by layers, or a context of another thread is open.
        RuntimeError: in a call of the model, a module that takes part attends by a softmax of its own.

    Warns:
        Some modules keep attention of their own; or, in a call of the model, one that takes part makes no call.
    """
    method = given(method, "apply")
    if isinstance(method, PerLayer):
        raise ValueError(
            f"apply: method must be one layer's: got {method.name}; apply each layer's method to that layer's module"
        )
    own, name = tuple(own), type(model).__name__
    kinds = {name: type(module).__name__ for name, module in parts.items()}
    if not parts:
        whose = f"keep attention of their own ({kinds_of(own)})" if own else "do not attend"
        raise ValueError(
            f"apply: modules of the model must call scaled_dot_product_attention: those of {name} {whose}; leave it "
            "as it is"
        )
    if own:
        warnings.warn(
            f"apply: {name} attends by {method.name} in part: {len(own)} of its attention modules keep attention of "
            f"their own ({kinds_of(own)}), since they do not call scaled_dot_product_attention",
            stacklevel=5,
        )
    with ExitStack() as undo:
        for one, attribute, setting in settings:
            replace(one, attribute, setting, undo)
        for encoder in (module for module in model.modules() if isinstance(module, nn.TransformerEncoder)):
            replace(encoder, "use_nested_tensor", False, undo)  # nested texts are for its own fused path
        _enter(Context(method), parts, name, undo)
        part = tuple(Part(name, kinds[name], PREFIX + method.name) for name in parts)
        yield Coverage(part, (), own, ())


def calling(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that call ``scaled_dot_product_attention`` by their own code, and PyTorch's own module, by name."""
    return {name: module for name, module in model.named_modules() if _calls(type(module))}


def own_parts(model: nn.Module, parts: dict[str, nn.Module]) -> Iterator[Part]:
    """The modules that keep attention of their own, without those that merely hold such modules.

    Args:
        model: the model.
        parts: the modules that take part.
    """
    found = {name: module for name, module in model.named_modules() if name not in parts and _computes(type(module))}
    for name, module in found.items():
        prefix = f"{name}." if name else ""
        holds = any(other.startswith(prefix) for other in (*found, *parts) if other != name)
        if not holds or classes.calls_attention(type(module)):
            yield Part(name, type(module).__name__, None)


def _calls(cls: type) -> bool:
    if issubclass(cls, nn.MultiheadAttention):
        return cls in (nn.MultiheadAttention, MultiheadAttention)
    return "scaled_dot_product_attention" in classes.names(cls).plain


def _computes(cls: type) -> bool:
    if issubclass(cls, nn.MultiheadAttention):
        return True
    return classes.calls_attention(cls) or classes.looks_like_attention(cls)


def _enter(context: Context, parts: dict[str, nn.Module], model: str, undo: ExitStack) -> None:
    """Open a context for the modules that take part, until ``undo`` is closed."""
    with _entering:
        open_ = {name: _contexts.setdefault(module, []) for name, module in parts.items()}
        if any(other.thread is not context.thread for contexts in open_.values() for other in contexts):
            raise ValueError(
                f"apply: the model must not attend by dynattn in a context of another thread: {model} does; leave that "
                "context first, or call the model in it, from any thread"
            )
        for contexts in open_.values():
            undo.callback(_leave, context, contexts)
            contexts.append(context)
        for name, module in parts.items():
            if isinstance(module, nn.MultiheadAttention):
                _become_ours(module, context.method, undo)
            else:
                _replace_forward(module, name, open_[name], undo)


def _leave(context: Context, contexts: list[Context]) -> None:
    with _entering:
        if context in contexts:
            contexts.remove(context)


def _replace_forward(module: nn.Module, name: str, contexts: list[Context], undo: ExitStack) -> None:
    holds = any(_contexts.get(inside) for inside in module.modules() if inside is not module)
    forward = Forward(module, name, contexts, holds)
    replace(module, "forward", forward, undo)
    replace(module, "_replicate_for_data_parallel", forward.replicate, undo)


def _become_ours(module: nn.MultiheadAttention, method: Method, undo: ExitStack) -> None:
    replace(module, "__class__", MultiheadAttention, undo)
    replace(module, "method", method, undo)
    replace(module, "_dynattn_context", NotCopied(), undo)
    replace(module, "_qkv_same_embed_dim", False, undo)  # what PyTorch's layers ask before they attend themselves
