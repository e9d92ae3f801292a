"""Replaces attributes of a model's modules while a context is active, and puts them back when it ends.

Only modules of the model are touched, and nothing that models share, such as their config. Compiled code is guarded by
these attributes. So code that was compiled earlier does not bypass the replacement, and code that is compiled meanwhile
does not run afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

IMPLEMENTATION = "dynattn-pruning"
"""The attention implementation that a :class:`StandInConfig` names."""


class _NotCopied:
    """Refuses ``copy.deepcopy`` and pickling."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(
            "pruning: a model must not be copied or pickled while it is pruned, since the copy would run this model's "
            "layers: leave the context first, and apply the method to the copy"
        )


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


def replace(module: nn.Module, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute of a module.

    Args:
        module: the module that has the attribute.
        name: the name of the attribute; a method's name hides the method of the class.
        value: what the attribute is from now on.
        undo: puts back what was there when it is closed, unless someone else has replaced the attribute meanwhile.
    """
    own = vars(module)
    had, before = name in own, own.get(name)

    def put_back() -> None:
        if own.get(name) is not value:
            return
        if had:
            own[name] = before
        else:
            del own[name]

    undo.callback(put_back)  # before the change, so that no interruption can come between
    own[name] = value
