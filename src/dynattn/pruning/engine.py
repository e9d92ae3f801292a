"""Takes tokens and heads out of a model's layers while a context is active.

Each layer gets the tokens that are left, gathered, with a mask as short as they are; its output is put back to full
length. All of it hangs on hooks of the layers, on an attention function that the layer finds for the time of its
forward, and, where heads are pruned, on the forward of its projections: what is taken away again on exit.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.pruning.course import Attended, Course, Decision, Seen, Start
from dynattn.pruning.heads import Heads
from dynattn.pruning.layout import Block, Layout, find
from dynattn.pruning.tokens import Tokens, key_mask, padding
from dynattn.pruning.work import Forward, LayerWork, Trace

_IMPLEMENTATION = "dynattn-pruning"
_DENSE = ("eager", "sdpa")  # dynattn:dense is not replaced, so that whoever observes its calls sees them
_active: dict[nn.Module, _Session] = {}  # by attention module


@contextmanager
def pruned(
    model: nn.Module, begin: Callable[[Start], Course], *, prunes_heads: bool = False, zero_pruned: bool = False
) -> Iterator[Trace]:
    """While active, the model's layers see only the tokens that a course leaves; what ``Pruning.apply`` returns.

    For methods that hold modules or parameters of their own; others inherit ``apply``.

    Args:
        model: a Transformers encoder or vision transformer.
        begin: makes a new course for each forward.
        prunes_heads: whether courses ever drop heads.
        zero_pruned: as :meth:`~dynattn.pruning.Pruning.apply` takes it.

    Yields:
        Records what each forward did.

    Raises:
        ValueError: the model's layers are not of a kind that can be handled, or it is being pruned already.
    """
    layout = find(model)
    if any(block.attention in _active for block in layout.blocks):
        raise ValueError("pruning: the model is being pruned already: leave that context first; methods do not nest")
    session = _Session(layout, begin, zero_pruned)
    with ExitStack() as undo:
        for index, block in enumerate(layout.blocks):
            session.attach(index, block, undo, prunes_heads)
        yield session.trace


class _Session:
    """The hooks of one context, and the state of the forward that is under way."""

    def __init__(self, layout: Layout, begin: Callable[[Start], Course], zero_pruned: bool) -> None:
        self.layout = layout
        self.begin = begin
        self.zero_pruned = zero_pruned
        self.trace = Trace()
        self.signature = inspect.signature(layout.blocks[0].layer.forward)
        self.implementation = ""  # the model's own, while a layer of it runs
        self.layer = 0

    def attach(self, index: int, block: Block, undo: ExitStack, prunes_heads: bool) -> None:
        """Hook one layer, and have ``undo`` take the hooks away."""
        _register()
        before = block.layer.register_forward_pre_hook(partial(self._before, index), with_kwargs=True)
        undo.callback(before.remove)
        # In front of all others, which should see the output at full length; also after an exception, to let go of
        # the attention function.
        release = block.layer.register_forward_hook(self._release, always_call=True, prepend=True)
        undo.callback(release.remove)
        after = block.layer.register_forward_hook(partial(self._after, index), prepend=True)
        undo.callback(after.remove)
        _active[block.attention] = self
        undo.callback(_active.pop, block.attention)
        if prunes_heads:
            Heads.cut(block, self.layout.heads, lambda: self.heads, undo)

    def _before(self, index: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        """Give a layer the tokens that are left."""
        given = self.signature.bind(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        full, mask = given.pop("hidden_states"), given.pop("attention_mask", None)
        _refuse(layer, self.layout.config, given)
        if index == 0:
            self._start(full, mask)
        implementation = _accepted(self.layout.config._attn_implementation)
        self.full, self.layer = full, index
        self.before = self.tokens.gather(full)
        if not self.tokens.whole:
            mask = key_mask(self.tokens.alive, implementation == "eager", full.dtype)
        self.implementation, self.layout.config._attn_implementation = implementation, _IMPLEMENTATION
        return (self.before, mask), given

    def _start(self, hidden: Tensor, mask: Tensor | None) -> None:
        alive = padding(mask, hidden)
        self.tokens = Tokens.all(alive)
        self.heads: Heads | None = None
        self.work: list[LayerWork] = []
        self.depth = torch.zeros_like(alive, dtype=torch.int64)
        # Leading tokens are the first that are not padding, wherever a sample is padded.
        self.leading = alive & (alive.cumsum(1) <= self.layout.leading)
        blocks = len(self.layout.blocks)
        self.course = self.begin(Start(blocks, self.layout.heads, alive))

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any):
        """The attention function that a layer finds."""
        inner = _function(module, self.implementation)
        heads = self.heads
        if heads is not None:
            query, key, value = heads.select(query), heads.select(key), heads.select(value)

        scale = kwargs.get("scaling")
        alive = None if bool(self.tokens.alive.all()) else self.tokens.alive
        out = self.course.attend(
            Attended(
                layer=self.layer, query=query, key=key, value=value,
                scale=query.shape[-1] ** -0.5 if scale is None else scale,
                alive=alive, heads=None if heads is None else heads.left,
                dense=self.implementation in _DENSE and not kwargs.get("dropout"),
                run=lambda: inner(module, query, key, value, mask, **kwargs)[0],
            )
        )  # fmt: skip
        return (out if heads is None else heads.spread(out)), None

    def _release(self, layer: nn.Module, args: Any, output: Any) -> None:
        if self.implementation:
            self.layout.config._attn_implementation, self.implementation = self.implementation, ""

    def _after(self, index: int, layer: nn.Module, args: Any, output: Any) -> Any:
        """Put a layer's output back to full length, and ask who goes on."""
        left = output[0] if isinstance(output, tuple) else output
        tokens = self.tokens
        leading = self.leading.gather(1, tokens.position)
        decision = self.course.after(Seen(index, left, tokens.alive, leading, tokens.position))
        if decision.gate is not None:
            left = left * decision.gate.unsqueeze(-1)
        self._record(index, left)
        full = tokens.scatter(self.full, left, self.before)
        del self.full, self.before
        if index + 1 < len(self.layout.blocks):
            self._go_on(decision)
        else:
            done = Forward(tuple(self.work), self.depth)
            self.trace.add(done)
            if self.zero_pruned and not tokens.whole:
                full = full * done.survivors.unsqueeze(-1)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _record(self, index: int, left: Tensor) -> None:
        tokens = self.tokens
        count = tokens.alive.sum(1)
        heads = self.layout.heads if self.heads is None else self.heads.left.shape[1]
        self.work.append(
            LayerWork(index, count, left.shape[1], torch.full_like(count, heads), self.course.notes())
        )  # fmt: skip
        self.depth = self.depth.scatter_add(1, tokens.position, tokens.alive.long())

    def _go_on(self, decision: Decision) -> None:
        tokens = self.tokens
        if decision.tokens is not None:
            if decision.tokens.shape != tokens.alive.shape or decision.tokens.dtype != torch.bool:
                raise ValueError(
                    f"pruning: a decision must be bool of shape {tuple(tokens.alive.shape)}: got "
                    f"{decision.tokens.dtype}, {tuple(decision.tokens.shape)}; return one entry for each token left"
                )
            self.tokens = tokens.keep(decision.tokens | self.leading.gather(1, tokens.position))
        if decision.heads is not None:
            self.heads = Heads.keep(self.heads, decision.heads)


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_IMPLEMENTATION, _attend)


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    return _active[module].attend(module, query, key, value, mask, **kwargs)


def _function(module: nn.Module, implementation: str) -> Callable[..., Any]:
    """The attention function that the module would have found by itself."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)


def _accepted(implementation: str | None) -> str:
    """The implementation, if it is one that takes masks as this engine makes them."""
    if implementation is None or implementation.startswith(("flash", "flex", "paged")):
        raise ValueError(
            f"pruning: attn_implementation must be 'sdpa', 'eager' or 'dynattn:...': the model has {implementation!r}; "
            "call model.set_attn_implementation('sdpa')"
        )
    return implementation


def _refuse(layer: nn.Module, config: Any, given: dict[str, Any]) -> None:
    """What else a layer is given may belong to its tokens, and nobody would shorten it."""
    more = [name for name, value in given.items() if value is not None and not isinstance(value, (bool, int, float))]
    if more:
        raise ValueError(
            f"pruning: a layer must take hidden states and a mask alone: {type(layer).__name__} is given "
            f"{', '.join(more)} too; call the model without"
        )
    if given.get("output_attentions") or getattr(config, "output_attentions", False):
        raise ValueError("pruning: attention weights cannot be returned: call the model without output_attentions")
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        raise ValueError(
            "pruning: gradient checkpointing would run a layer again without its hooks: call "
            "model.gradient_checkpointing_disable()"
        )
