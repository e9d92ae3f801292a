"""Counts what the forward pass of a model costs, from its real attention calls and tokens, with or without a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynattn.account.attention import MEGABYTE, of_call, of_mixing
from dynattn.account.work import Work
from dynattn.integrations.transformers import Call, observing
from dynattn.methods import MixingMethod, PairMethod
from dynattn.nn import PoNet
from dynattn.sparsity.activations.observe import Chosen, counts
from dynattn.sparsity.activations.observe import observing as observing_choices


class Account:
    """The costs of all forward passes in a :func:`counting` context.

    Attributes:
        attention: the costs of attention alone, or of the poolings that take its place.
        linear: the costs of the linear layers. Their weights are read once for each time that a layer runs. Of a layer
            whose inputs or outputs are left out, by :mod:`dynattn.sparsity`, what is left; the weights that no token
            needs are not read, and the choice takes a comparison for each entry.
        calls: how many attention calls were counted.
    """

    def __init__(self) -> None:
        self.attention = Work()
        self.linear = Work()
        self.calls = 0

    @property
    def total(self) -> Work:
        """The costs of the whole model."""
        return self.attention + self.linear


def _of_part(call: Call, cache_bytes: int, fused: bool) -> Work:
    tensors = call.query, call.key, call.value
    given: dict[str, Any] = {"attn_mask": call.attn_mask, "causal": call.causal, "scale": call.scale}
    if isinstance(call.method, PairMethod):
        return of_call(*tensors, call.method, cache_bytes=cache_bytes, fused=fused, **given)
    return of_mixing(*tensors, cast(MixingMethod, call.method), **given)


def _of_poolings(layer: PoNet, out: Tensor) -> Work:
    """Two products of the global aggregation, the fusion's product; five inputs read and their mixture written."""
    numbers = out.numel()
    return Work(
        scores=numbers,
        values=2 * numbers,
        exponentials=numbers // out.shape[-1] * layer.heads,
        read=5 * numbers * out.element_size(),
        written=numbers * out.element_size(),
    )


@contextmanager
def counting(
    model: nn.Module, *, cache_bytes: int = MEGABYTE, fused: bool = True, attention: bool = True
) -> Iterator[Account]:
    """While active, count what the model's forward passes cost.

    A pruning method that shortens the sequence, or a cache that drops keys, is counted as it really runs. Attention
    must be dynattn's (``dynattn:dense`` for the baseline), or :class:`dynattn.nn.PoNet` in its place; otherwise only
    linear layers are counted, and ``calls`` stays 0. Masks, activations between layers, normalisations and embeddings
    are not counted. The choice of each call is made again in order to count it, which is slow.

    Args:
        model: a Transformers model with ``attn_implementation="dynattn:..."``.
        cache_bytes: see :func:`dynattn.account.of_call`.
        fused: likewise.
        attention: whether attention is counted; if not, linear layers are, at no cost, and ``calls`` stays 0.

    Yields:
        The account, filled as the model runs.
    """
    account = Account()

    def attended(call: Call) -> None:
        account.calls += 1
        for part in call.by_method():
            account.attention += _of_part(part, cache_bytes, fused)

    def multiplied(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # Counted by the sizes of input and output, since a layer may run on fewer heads than it has weights for.
        weights = args[0].shape[-1] * output.shape[-1]
        rows = output.numel() // output.shape[-1]
        account.linear += Work(linear=rows * weights, read=weights * output.element_size())

    def pooled(layer: PoNet, args: tuple[Tensor, ...], output: Tensor) -> None:
        account.calls += 1
        account.attention += _of_poolings(layer, output)

    def chosen(found: Chosen) -> None:
        if isinstance(found.module, nn.Linear):  # counted in full by the hook
            spared, unread = counts(found)
            comparisons = found.keep.numel() if found.made else 0
            read = -unread * found.module.weight.element_size()
            account.linear += Work(linear=-spared, choosing=comparisons, read=read)

    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, (nn.Linear, PoNet) if attention else nn.Linear):
                hook = multiplied if isinstance(layer, nn.Linear) else pooled
                stack.callback(layer.register_forward_hook(hook).remove)
        if attention:
            stack.enter_context(observing(attended))
        stack.enter_context(observing_choices(chosen))
        yield account


@torch.inference_mode()
def of_model(
    model: nn.Module, inputs: Mapping[str, Any], *, cache_bytes: int = MEGABYTE, fused: bool = True
) -> Account:
    """What one forward pass costs.

    Args:
        model, cache_bytes, fused: as for :func:`counting`.
        inputs: keyword arguments of the forward.

    Returns:
        The account.

    Raises:
        TypeError: the inputs are not a mapping.
        ValueError: the model made no call of dynattn.
    """
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"of_model: inputs must be keyword arguments of the forward: got {type(inputs).__name__}; pass a mapping, "
            "as in {'input_ids': ids}"
        )
    with counting(model, cache_bytes=cache_bytes, fused=fused) as account:
        model(**inputs)
    if account.calls == 0:
        raise ValueError(
            f"of_model: the model must call dynattn: {type(model).__name__} made no call; "
            "call set_attn_implementation('dynattn:dense') first"
        )
    return account
