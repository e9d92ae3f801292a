"""A call of attention from a Transformers model, and how to observe such calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from dynattn import heads
from dynattn.methods import Method, PerHead


class Call(NamedTuple):
    """One call of dynattn from a Transformers model, as :func:`observing` reports it.

    Attributes:
        layer: the module's ``layer_idx``; where it has none, how many other modules were seen before it.
        module: the attention module.
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim), the cache's included, not repeated for the heads.
        value: (batch, kv_heads, kv_len, value_dim).
        method: what is kept, in this layer.
        attn_mask: as :func:`dynattn.attention` takes it, or None.
        causal: as :func:`dynattn.attention` takes it.
        scale: factor of the scores, or None.
    """

    layer: int
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    method: Method
    attn_mask: Tensor | None
    causal: bool
    scale: float | None

    def by_method(self, wanted: Callable[[Method], bool] = lambda _: True) -> list[Call]:
        """The calls of a single method that this call consists of: itself, or a call for each method where heads
        differ.

        Args:
            wanted: the methods whose calls are asked for.
        """
        if not isinstance(self.method, PerHead):
            return [self] if wanted(self.method) else []
        parts = heads.parts(self.query, self.key, self.value, self.method, self.attn_mask, None, wanted)
        return [
            self._replace(
                method=part.method, query=part.query, key=part.key, value=part.value, attn_mask=part.attn_mask
            )
            for part in parts
        ]


observers: list[Callable[..., None]] = []
replacements: list[Callable[[nn.Module, Method], Method]] = []


@contextmanager
def observing(callback: Callable[[Call], None]) -> Iterator[None]:
    """While active, every dynattn call that a Transformers model makes is first shown to ``callback``.

    Args:
        callback: gets a :class:`Call`. It may call :func:`dynattn.attention` on the tensors, with ``return_aux=True``
            to see the kept mass. An exception in it ends the model's forward.
    """
    order: dict[nn.Module, int] = {}

    def observe(module: nn.Module, *rest: Any) -> None:
        layer = getattr(module, "layer_idx", None)
        callback(Call(order.setdefault(module, len(order)) if layer is None else layer, module, *rest))

    observers.append(observe)
    try:
        yield
    finally:
        observers.remove(observe)


@contextmanager
def replacing(choose: Callable[[nn.Module, Method], Method]) -> Iterator[None]:
    """While active, every layer attends by the method that ``choose`` returns for its module and its method."""
    replacements.append(choose)
    try:
        yield
    finally:
        replacements.remove(choose)
