"""What a model's forward pass costs: its real attention calls, its real tokens, with and without a method."""

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


class Account:
    """Costs of all forward passes in a :func:`counting` context.

    Attributes:
        attention: of attention alone.
        linear: of the linear layers; reading their weights included, once for each time that a layer runs.
        calls: of attention that were counted.
    """

    def __init__(self) -> None:
        self.attention = Work()
        self.linear = Work()
        self.calls = 0

    @property
    def total(self) -> Work:
        """Costs of the whole model."""
        return self.attention + self.linear


def _of_part(call: Call, cache_bytes: int, fused: bool) -> Work:
    tensors = call.query, call.key, call.value
    given: dict[str, Any] = {"attn_mask": call.attn_mask, "causal": call.causal, "scale": call.scale}
    if isinstance(call.method, PairMethod):
        return of_call(*tensors, call.method, cache_bytes=cache_bytes, fused=fused, **given)
    return of_mixing(*tensors, cast(MixingMethod, call.method), **given)


@contextmanager
def counting(model: nn.Module, *, cache_bytes: int = MEGABYTE, fused: bool = True) -> Iterator[Account]:
    """While active, count what the model's forward passes cost.

    Whatever is active besides counts as it really runs: a pruning method that shortens the sequence, a cache that drops
    keys. Attention must be dynattn's (``dynattn:dense`` for the baseline), else linear layers alone are counted and
    ``calls`` stays 0. Masks, activations between layers, normalisations and embeddings are not counted. Each call's
    choice is made again in order to count it, which is slow.

    Args:
        model: a Transformers model with ``attn_implementation="dynattn:..."``.
        cache_bytes: see :func:`dynattn.account.of_call`.
        fused: likewise.

    Yields:
        The account, filled as the model runs.
    """
    account = Account()

    def attended(call: Call) -> None:
        account.calls += 1
        for part in call.by_method():
            account.attention += _of_part(part, cache_bytes, fused)

    def multiplied(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # By what goes in and comes out: a layer may run on fewer heads than it has weights for.
        weights = args[0].shape[-1] * output.shape[-1]
        rows = output.numel() // output.shape[-1]
        account.linear += Work(linear=rows * weights, read=weights * output.element_size())

    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                stack.callback(layer.register_forward_hook(multiplied).remove)
        stack.enter_context(observing(attended))
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
        TypeError: the inputs are no mapping.
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
