"""Replaces attributes of a model's modules while a context is active, and puts them back when it ends.

Only modules of the model are touched, and nothing that models share, such as their config. Compiled code is guarded by
these attributes. So code that was compiled earlier does not bypass the replacement, and code that is compiled meanwhile
does not run afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

IMPLEMENTATION = "dynattn-pruning"
"""The attention implementation that a :class:`StandInConfig` names."""

attaching = threading.Lock()
"""Held while a context replaces a model's forwards, whichever engine's it is, so that two never both find it free."""

_ABSENT = object()
_changing = threading.RLock()  # the end of a context that is collected as garbage may come while another one changes
_open: dict[tuple[int, str], list[_Replacement]] = {}  # by the object's id and the attribute, in the order they came


class _NotCopied:
    """Refuses ``copy.deepcopy`` and pickling."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(
            "pruning: a model must not be copied or pickled while it is pruned, since the copy would run this model's "
            "layers: leave the context first, and apply the method to the copy"
        )


class _Replacement:
    """An attribute that was replaced, and what was there before."""

    def __init__(self, module: Any, name: str, value: Any) -> None:
        self.module, self.name, self.value = module, name, value
        self.before = self.now()

    def now(self) -> Any:
        return type(self.module) if self.name == "__class__" else vars(self.module).get(self.name, _ABSENT)

    def set(self, value: Any) -> None:
        if self.name == "__class__":
            self.module.__class__ = value
        elif value is _ABSENT:
            del vars(self.module)[self.name]
        else:
            vars(self.module)[self.name] = value

    def put_back(self) -> None:
        with _changing:
            place = (id(self.module), self.name)
            known = _open.get(place, [])
            if self not in known:  # an interruption came before the change
                return
            later = known[known.index(self) + 1 :]
            above = next((one for one in later if one.before is self.value), None)
            known.remove(self)
            if not known:
                del _open[place]
            if above is not None:
                above.before = self.before
            elif self.now() is self.value:
                self.set(self.before)


class ReplacedForward(_NotCopied):
    """Stands in the place of a module's ``forward``.

    Args:
        inner: the module's own forward.
        run: called with ``inner`` and the arguments of each call; its result is the module's.
    """

    def __init__(self, inner: Callable[..., Any], run: Callable[..., Any]) -> None:
        self.inner, self.run = inner, run
        self.__wrapped__ = inner  # so that the signature is the module's own

    # A graph has fixed layers and lengths: compiled code is left here, and goes on behind the call.
    @torch.compiler.disable(reason="dynattn.pruning decides after every layer how long the next one's input is")
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.inner, *args, **kwargs)


class StandInConfig(_NotCopied):
    """Stands in the place of an attention module's ``config``: the same, except for the attention that it names.

    Args:
        original: the model's own config. Everything else is read from it, later changes included.
        attend: the attention function, as Transformers calls it.
    """

    def __init__(self, original: Any, attend: Callable[..., Any]) -> None:
        self.original, self.attend = original, attend
        self._attn_implementation = IMPLEMENTATION

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def replace(module: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute of a module. Replacements of one attribute may end in any order.

    Args:
        module: the module, or other object, that has the attribute.
        name: the name of the attribute; a method's name hides the method of the class, and ``__class__`` is the class.
        value: what the attribute is from now on.
        undo: puts back what was there when it is closed, unless someone else has replaced the attribute meanwhile. A
            later replacement that is still open stays, and puts back what was there before this one.
    """
    with _changing:
        one = _Replacement(module, name, value)
        undo.callback(one.put_back)  # before the change, so that no interruption can come between
        _open.setdefault((id(module), name), []).append(one)
        one.set(value)
