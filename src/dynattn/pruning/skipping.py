"""The engine that lets tokens of a decoder skip single layers: a layer computes the tokens alone that run it.

    h'_i = layer(h at the tokens that run)_i    for a token that runs, at its true position
    h'_i = h_i                                  for one that skips

A token that skips has no query, no key and no value in that layer, and comes back in the next one. So the layers'
inputs, rotary positions and masks are gathered, and their outputs scattered back. :mod:`dynattn.pruning.engine` is for
methods whose tokens are gone for good, and for encoders.

For training, a way that is ``soft`` has every token computed, with the keys of those that skip masked: the output is
the same, and what a token that skips would have got gives the choice a gradient.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.pruning.calls import accepted, attend, attention_function, refuse
from dynattn.pruning.decoders import Decoder, find
from dynattn.pruning.layout import signature
from dynattn.pruning.replaced import IMPLEMENTATION, ReplacedForward, StandInConfig, attaching, replace
from dynattn.pruning.rows import OfTokens
from dynattn.pruning.tokens import Tokens
from dynattn.pruning.work import Forward, LayerWork, Trace


class Ran(NamedTuple):
    """The attention of one layer, which is about to be computed.

    Attributes:
        layer: the number of the layer, from 0.
        query: (batch, heads, rows, head_dim), rotated to their positions.
        key: (batch, kv_heads, rows, head_dim), likewise.
        mask: bool (True: allowed) or added, (batch or 1, 1, rows, rows); None for a causal mask.
        scale: factor of the scores.
        position: (batch, rows) int64: where each row stands in the sequence.
        runs: (batch, rows) bool: the rows that are tokens that run this layer.
    """

    layer: int
    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float
    position: Tensor
    runs: Tensor


class Choice(NamedTuple):
    """Who runs a layer.

    Attributes:
        runs: (batch, length) bool. Padding never runs, whatever it says.
        weight: (batch, length), 1 where a token runs and 0 where it skips, with a gradient; None without one.
    """

    runs: Tensor
    weight: Tensor | None = None


class Way:
    """A method's state over one forward. Subclasses override what they need; with this one every token runs.

    Attributes:
        soft: whether all tokens are computed, so that :attr:`Choice.weight` has a gradient.
    """

    soft: bool = False

    def choose(self, layer: int) -> Choice | None:
        """Who runs a layer, before it is computed; None for every token.

        Args:
            layer: the number of the layer, from 0.
        """
        return None

    def attended(self, ran: Ran) -> None:
        """Look at the attention of a layer. Called where the method asked for it, see :func:`skipped`."""


Begin = Callable[[int, Tensor], Way]
"""Makes the way of a forward from the number of layers and (batch, length) bool, False at padding."""


@contextmanager
def skipped(model: nn.Module, begin: Begin, *, watches: bool = False) -> Iterator[Trace]:
    """While active, each layer computes the tokens alone that a way lets run.

    Args:
        model: a decoder of Transformers.
        begin: makes a new way for each forward.
        watches: whether ways look at the attention of layers.

    Yields:
        The trace, which records what each forward did. Of each layer it notes ``present``, the tokens that there were,
        and ``pairs``, the pairs of query and key that a causal mask allows, over all heads.

    Raises:
        TypeError: the model is none.
        ValueError: the model is of another kind, or is being pruned already.
    """
    session = _Session(find(model), begin)
    with ExitStack() as undo:
        with attaching:
            session.attach(undo, watches)
        undo.callback(session.close)
        yield session.trace


class _Progress:
    """The state of one forward."""

    def __init__(self, decoder: Decoder, begin: Begin, alive: Tensor) -> None:
        self.alive, self.heads = alive, decoder.config.num_attention_heads
        self.way = begin(len(decoder.layers), alive)
        self.work: list[LayerWork] = []
        self.depth = torch.zeros_like(alive, dtype=torch.int64)
        self.at_work: tuple[Tensor, Tensor] | None = None  # where the rows of this layer stand, and which of them run

    @property
    def layer(self) -> int:
        """The number of the layer at work; between layers, that of the next one."""
        return len(self.work)

    def record(self, runs: Tensor, length: int) -> None:
        """Note which tokens the layer at work was for, and the length that it computed."""
        count = runs.sum(1)
        notes = {"present": self.alive.sum(1), "pairs": self.heads * (count * (count + 1) // 2)}
        self.work.append(LayerWork(self.layer, count, length, torch.full_like(count, self.heads), notes))
        self.depth = self.depth + runs
        self.at_work = None


class _Forward:
    """A forward of the module that runs the layers: its padding mask, and its progress from the first layer on."""

    def __init__(self, mask: Tensor | None) -> None:
        self.mask = mask
        self.progress: _Progress | None = None


class _Session:
    """The replacements that one context puts into a model."""

    def __init__(self, decoder: Decoder, begin: Begin) -> None:
        self.decoder, self.begin = decoder, begin
        self.trace = Trace()
        self.open = True
        self.runner, self.signature = signature(decoder.runner), signature(decoder.layers[0])
        self.thread = threading.local()  # .forward that this thread runs

    def attach(self, undo: ExitStack, watches: bool) -> None:
        """Replace the forwards, and have ``undo`` put them back."""
        from transformers import AttentionInterface

        runner = self.decoder.runner
        if isinstance(vars(runner).get("forward"), ReplacedForward):
            raise ValueError(
                "skipping: the model is being pruned already, here or in another thread: leave that context first; "
                "methods do not nest"
            )
        AttentionInterface.register(IMPLEMENTATION, attend)
        replace(runner, "forward", ReplacedForward(runner.forward, self._run), undo)
        for index, layer in enumerate(self.decoder.layers):
            replace(layer, "forward", ReplacedForward(layer.forward, partial(self._run_layer, index, layer)), undo)
            if watches:
                attention: Any = layer.self_attn
                replace(attention, "config", StandInConfig(attention.config, self._attend), undo)

    def close(self) -> None:
        """From now on, a replaced forward that someone still holds calls the module's own."""
        self.open = False

    @property
    def forward(self) -> _Forward | None:
        """The forward that this thread runs; None between forwards."""
        return getattr(self.thread, "forward", None)

    def _run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The forward of the module that runs the layers, without a cache."""
        if not self.open:
            return forward(*args, **kwargs)
        given = self.runner.bind(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        mask = given.get("attention_mask")
        _check(given.get("past_key_values"), mask)
        given["use_cache"] = False
        outer, self.thread.forward = self.forward, _Forward(mask)
        try:
            output = forward(**given)
            progress = self.thread.forward.progress
            if not self.open and (progress is None or progress.layer < len(self.decoder.layers)):
                raise RuntimeError(
                    "skipping: the context must outlast the forwards that begin in it: it ended while this one was "
                    "under way in another thread, and layers were dense; wait for threads before you leave it"
                )
            return output
        finally:
            self.thread.forward = outer

    def _run_layer(self, index: int, layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The forward of a layer, which gets the tokens that run it."""
        state = self.forward
        if not self.open or state is None:
            return forward(*args, **kwargs)
        given = self.signature.bind(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        full, its = given.pop("hidden_states"), OfTokens.taken(given)
        refuse(layer, self.decoder.config, given)
        accepted(self.decoder.config._attn_implementation)
        if state.progress is None:
            state.progress = _Progress(self.decoder, self.begin, _alive(state.mask, full))
        progress = state.progress
        if progress.layer != index:
            raise RuntimeError(
                f"skipping: layers must run in order: layer {index} was called where {progress.layer} comes next; "
                "begin with layer 0"
            )
        choice = progress.way.choose(index) or Choice(progress.alive)
        run = partial(forward, **given)
        full = (_soft if progress.way.soft else _hard)(progress, run, full, its, choice)
        if progress.layer == len(self.decoder.layers):
            self.trace.add(Forward(tuple(progress.work), progress.depth))
        return full

    def _attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any):
        """The attention function that the attention module of a layer finds."""
        inner = attention_function(module, self.decoder.config._attn_implementation)
        progress = None if self.forward is None else self.forward.progress
        if progress is not None and progress.at_work is not None:
            scale = kwargs.get("scaling")
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            progress.way.attended(Ran(progress.layer, query, key, mask, scale, *progress.at_work))
        return inner(module, query, key, value, mask, **kwargs)


def _hard(progress: _Progress, run: Callable[..., Tensor], full: Tensor, its: OfTokens, choice: Choice) -> Tensor:
    """The layer on the tokens that run, and the others as they were."""
    runs = choice.runs & progress.alive
    tokens = Tokens.all(progress.alive).keep(runs)
    if tokens.position.shape[1]:
        before = tokens.gather(full)
        its = its if tokens.whole else its.gather(tokens, full)
        progress.at_work = tokens.position, tokens.alive
        full = tokens.scatter(full, run(before, **its._asdict()), before)
    progress.record(runs, tokens.position.shape[1])
    return full


def _soft(progress: _Progress, run: Callable[..., Tensor], full: Tensor, its: OfTokens, choice: Choice) -> Tensor:
    """The layer on every token, none of which sees the keys of those that skip, but its own."""
    runs = choice.runs & progress.alive
    progress.at_work = Tokens.all(progress.alive).position, runs
    out = run(full, **its.without_keys(runs, full)._asdict())
    progress.record(runs, full.shape[1])
    result = torch.where(runs.unsqueeze(-1), out, full)
    if choice.weight is None:
        return result
    # This adds 0, whose gradient is that of ``weight · out + (1 - weight) · full`` for the weight.
    nothing = (choice.weight - choice.weight.detach()).unsqueeze(-1).to(full.dtype)
    return result + nothing * (out - full).detach()


def _alive(mask: Tensor | None, full: Tensor) -> Tensor:
    """(batch, length) bool, False at padding."""
    if mask is None:
        return torch.ones(full.shape[:2], dtype=torch.bool, device=full.device)
    if tuple(mask.shape) not in (tuple(full.shape[:2]), (1, full.shape[1])):
        raise ValueError(
            f"skipping: attention_mask must be {tuple(full.shape[:2])}: got {tuple(mask.shape)}; pass an entry for "
            "each token"
        )
    return mask.bool().expand(full.shape[:2])


def _check(cache: Any, mask: Any) -> None:
    if cache is not None:
        raise ValueError(
            "skipping: there must be no key-value cache, since layers would remember different tokens: got "
            f"{type(cache).__name__}; call the model without, as generate(use_cache=False) does"
        )
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"skipping: attention_mask must be (batch, length), 0 at padding: got {found}; pass a padding mask, or none"
        )
