"""The engine that takes tokens and heads out of the layers of a model while a context is active.

Each layer gets the tokens that are left, gathered, with a mask of their length; its output is put back to full length.
For this, :mod:`dynattn.pruning.replaced` replaces the forwards of the layers and of the module that runs them, and,
where heads are pruned, the forwards of the projections. The attention modules see a config that names this engine's
attention function. The state of a forward belongs to the thread that runs it, so threads may share a model that is
being pruned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.pruning.calls import accepted, attend, attention_function, refuse
from dynattn.pruning.course import Attended, Course, Decision, Seen, Start
from dynattn.pruning.heads import Heads
from dynattn.pruning.layout import Layout, find, signature
from dynattn.pruning.replaced import IMPLEMENTATION, ReplacedForward, StandInConfig, attaching, replace
from dynattn.pruning.tokens import Tokens, key_mask, padding
from dynattn.pruning.work import Forward, LayerWork, Trace

_DENSE = ("eager", "sdpa")  # dynattn:dense is not among them, so that whoever observes its calls still sees them


@contextmanager
def pruned(
    model: nn.Module, begin: Callable[[Start], Course], *, prunes_heads: bool = False, zero_pruned: bool = False
) -> Iterator[Trace]:
    """While active, the model's layers see only the tokens that a course leaves. ``Pruning.apply`` is made of this.

    Methods that hold modules or parameters of their own call it; others inherit ``apply``.

    Args:
        model: a Transformers encoder or vision transformer.
        begin: makes a new course for each forward.
        prunes_heads: whether courses ever drop heads.
        zero_pruned: as :meth:`~dynattn.pruning.Pruning.apply` takes it.

    Yields:
        The trace, which records what each forward did.

    Raises:
        ValueError: the model's layers are not of a kind that can be handled, or it is being pruned already.
    """
    session = _Session(find(model), begin, zero_pruned)
    with ExitStack() as undo:
        with attaching:
            session.attach(undo, prunes_heads)
        undo.callback(session.close)
        yield session.trace


class _Progress:
    """The state of one forward: which tokens and heads are left, and what has been done."""

    def __init__(self, layout: Layout, begin: Callable[[Start], Course], hidden: Tensor, mask: Tensor | None) -> None:
        alive = padding(mask, hidden)
        self.tokens = Tokens.all(alive)
        self.heads: Heads | None = None
        # The leading tokens are the first ones that are not padding, on whichever side a sample is padded.
        self.leading = alive & (alive.cumsum(1) <= layout.leading)
        self.work: list[LayerWork] = []
        self.depth = torch.zeros_like(alive, dtype=torch.int64)
        self.implementation: str | None = None  # the model's own implementation, while a layer runs
        self.course = begin(Start(len(layout.layers), layout.heads, alive))

    @property
    def layer(self) -> int:
        """The number of the layer at work; between layers, that of the next one."""
        return len(self.work)

    def record(self, hidden: Tensor, heads: int) -> None:
        """Note what the layer at work processed.

        Args:
            hidden: (batch, tokens left, width), its output.
            heads: the number of heads of the model.
        """
        count = self.tokens.alive.sum(1)
        heads = heads if self.heads is None else self.heads.left.shape[1]
        self.work.append(
            LayerWork(self.layer, count, hidden.shape[1], torch.full_like(count, heads), self.course.notes())
        )  # fmt: skip
        self.depth = self.depth.scatter_add(1, self.tokens.position, self.tokens.alive.long())

    def go_on(self, decision: Decision) -> None:
        """Keep only the tokens and heads that the decision lets go on."""
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


class _Session:
    """The replacements that one context puts into a model."""

    def __init__(self, layout: Layout, begin: Callable[[Start], Course], zero_pruned: bool) -> None:
        self.layout = layout
        self.begin = begin
        self.zero_pruned = zero_pruned
        self.trace = Trace()
        self.signature = signature(layout.layers[0].layer)
        self.open = True
        self.thread = threading.local()  # .progress of the forward that this thread runs, and whether it is .complete

    @property
    def progress(self) -> _Progress | None:
        """How far the forward that this thread runs has come; None between forwards."""
        return getattr(self.thread, "progress", None)

    def attach(self, undo: ExitStack, prunes_heads: bool) -> None:
        """Replace the forwards and configs, and have ``undo`` put them back."""
        from transformers import AttentionInterface

        # The runner is replaced first and put back last. So where the runner has its own forward, everything else has
        # too.
        runner, layers = self.layout.runner, self.layout.layers
        taken = [vars(runner).get("forward"), *(parts.attention.config for parts in layers)]
        if any(isinstance(found, (ReplacedForward, StandInConfig)) for found in taken):
            raise ValueError(
                "pruning: the model is being pruned already, here or in another thread: leave that context first; "
                "methods do not nest"
            )
        AttentionInterface.register(IMPLEMENTATION, attend)
        replace(runner, "forward", ReplacedForward(runner.forward, self._run), undo)
        for index, parts in enumerate(layers):
            forward = ReplacedForward(parts.layer.forward, partial(self._run_layer, index, parts.layer))
            replace(parts.layer, "forward", forward, undo)
            replace(parts.attention, "config", StandInConfig(parts.attention.config, self.attend), undo)
            if prunes_heads:
                Heads.cut(parts, self.layout.heads, self._heads, undo)

    def close(self) -> None:
        """From now on, a replaced forward that someone still holds calls the module's own."""
        self.open = False

    def _heads(self) -> Heads | None:
        progress = self.progress
        return None if progress is None else progress.heads

    def _run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The forward of the module that runs the layers."""
        if not self.open:
            return forward(*args, **kwargs)
        outer, self.thread.progress, self.thread.complete = self.progress, None, False
        try:
            output = forward(*args, **kwargs)
        except Exception as error:  # for example of a layer that was put back between two of its projections
            self._refuse_torn(error)
            raise
        else:
            self._refuse_torn(None)
            return output
        finally:
            self.thread.progress = outer

    def _refuse_torn(self, cause: Exception | None) -> None:
        if not (self.open or self.thread.complete):
            raise RuntimeError(
                "pruning: the context must outlast the forwards that begin in it: it ended while this one was under "
                "way in another thread, and layers were dense; wait for threads before you leave it"
            ) from cause

    def _run_layer(self, index: int, layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The forward of a layer, which gets the tokens that are left."""
        if not self.open or (index > 0 and self.progress is None):  # the forward began outside of the context
            return forward(*args, **kwargs)
        given = self.signature.bind(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        full, mask = given.pop("hidden_states"), given.pop("attention_mask", None)
        refuse(layer, self.layout.config, given)
        if index == 0:
            self.thread.progress = _Progress(self.layout, self.begin, full, mask)
        progress: _Progress = self.thread.progress
        if progress.layer != index:
            raise RuntimeError(
                f"pruning: layers must run in order: layer {index} was called where {progress.layer} comes next; "
                "begin with layer 0"
            )
        try:
            implementation = accepted(self.layout.config._attn_implementation)
            before = progress.tokens.gather(full)
            if not progress.tokens.whole:
                mask = key_mask(progress.tokens.alive, implementation == "eager", full.dtype)
            progress.implementation = implementation
            output = forward(before, mask, **given)
            progress.implementation = None
            left = output[0] if isinstance(output, tuple) else output
            full = self._after(progress, full, before, left)
        except BaseException:
            self.thread.progress = None
            raise
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _after(self, progress: _Progress, full: Tensor, before: Tensor, left: Tensor) -> Tensor:
        """Ask the course which tokens go on, and put the layer's output back to full length."""
        tokens = progress.tokens
        leading = progress.leading.gather(1, tokens.position)
        decision = progress.course.after(Seen(progress.layer, left, tokens.alive, leading, tokens.position))
        if decision.gate is not None:
            left = left * decision.gate.unsqueeze(-1)
        progress.record(left, self.layout.heads)
        full = tokens.scatter(full, left, before)
        if progress.layer < len(self.layout.layers):
            progress.go_on(decision)
            return full
        self.thread.progress, self.thread.complete = None, True
        done = Forward(tuple(progress.work), progress.depth)
        self.trace.add(done)
        if self.zero_pruned and not tokens.whole:
            full = full * done.survivors.unsqueeze(-1)
        return progress.course.finish(full)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any):
        """The attention function that the attention module of a layer finds."""
        progress = self.progress
        if progress is None or progress.implementation is None:  # not called by a layer of a forward in the context
            own = attention_function(module, self.layout.config._attn_implementation)
            return own(module, query, key, value, mask, **kwargs)
        inner, heads = attention_function(module, progress.implementation), progress.heads
        if heads is not None:
            query, key, value = heads.select(query), heads.select(key), heads.select(value)
        scale = kwargs.get("scaling")
        alive = None if bool(progress.tokens.alive.all()) else progress.tokens.alive
        out = progress.course.attend(
            Attended(
                layer=progress.layer, query=query, key=key, value=value,
                scale=query.shape[-1] ** -0.5 if scale is None else scale,
                alive=alive, heads=None if heads is None else heads.left,
                dense=_is_dense(module, progress.implementation) and not kwargs.get("dropout"),
                run=lambda: inner(module, query, key, value, mask, **kwargs)[0],
            )
        )  # fmt: skip
        return (out if heads is None else heads.spread(out)), None


def _is_dense(module: nn.Module, implementation: str) -> bool:
    """Whether a module's own attention is softmax attention over all keys."""
    given = getattr(module, "dynattn_assigned", None)
    return implementation in _DENSE or (given is not None and given.method.keeps_everything)
