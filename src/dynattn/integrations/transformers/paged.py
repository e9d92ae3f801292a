"""Attention over the paged cache of Transformers' continuous batching (``generate_batch``).

All requests of a step lie in one sample, and the cache tells where the keys of each lie. New keys are written into
their pages, and attention reads the pages where they are. Transformers makes its own mask for ``sdpa`` here; this
needs none, since each request is computed by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.integrations import requests
from dynattn.integrations.transformers.calls import observers
from dynattn.integrations.transformers.coverage import PREFIX
from dynattn.methods import Method
from dynattn.varlen import varlen_attention

_SLIDING = "sliding_attention"


class Phases(NamedTuple):
    """How many keys the requests of a step have, by their phase: the new ones and those before."""

    prefill: Tensor
    decode: Tensor


def phases(module: nn.Module, given: dict[str, Any]) -> Phases:
    """Which requests of a step decode.

    Args:
        module: the attention module.
        given: what a model passes on, as :func:`attend` takes it, with the ``cache``.
    """
    kind = given["cache"].layer_to_allocator[module.layer_idx].layer_type
    lengths, used = given["cu_seq_lens_q"].diff(), given["cu_seq_lens_k"][kind].diff()
    decoding = requests.decoding(lengths, used)
    return Phases(used[~decoding & (lengths > 0)], used[decoding])


def keeping_ours(original: Callable[..., None]) -> Callable[..., None]:
    """Have Transformers take dynattn's names for continuous batching, for which it knows its own alone.

    Args:
        original: ``ContinuousBatchingManager.switch_to_cb_friendly_attn``.
    """

    @wraps(original)
    def switch(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        if not str(model.config._attn_implementation).startswith(PREFIX):
            original(self, model, *args, **kwargs)

    return switch


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, cache: Any, methods: tuple[Method, Method],
    scaling: float | None, given: dict[str, Any],
) -> Tensor:  # fmt: skip
    """Write new keys and values into the cache, and attend to those of each request.

    Args:
        module: the attention module, whose ``layer_idx`` tells its layer.
        query: (1, heads, tokens, head_dim), the requests one after another; ``key`` and ``value`` likewise.
        cache: a ``PagedAttentionCache``.
        methods: what requests keep that are in prefill, and what those that decode do.
        scaling: factor of the scores, or None.
        given: what else the model passes on: ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``read_index``, ``write_index``.

    Returns:
        (1, tokens, heads, value_dim).

    Raises:
        ValueError: the layer has a sliding window and a method is not dense, or attention is observed.
        NotImplementedError: the step has a block table, which only flash attention on a GPU gets.
    """
    allocator = cache.layer_to_allocator[module.layer_idx]
    sliding = allocator.layer_type == _SLIDING
    for method in methods:
        _refuse(module, method, sliding, given)
    read, write = given["read_index"][allocator.index], given["write_index"][allocator.index]
    bounds, k_bounds = given["cu_seq_lens_q"], given["cu_seq_lens_k"][allocator.layer_type]
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    # full attention reads the pages where they are; a window's slots are written over, so that they are read first
    key, value = allocator.update(key, value, module.layer_idx, read if sliding else read[:0], write)
    options: dict[str, Any] = {"cu_seq_q": bounds, "causal": True, "scale": scaling}
    if len(read) and not sliding:
        key, value = allocator.get_cache_for_block_table(module.layer_idx)
        options |= {"seqused_k": k_bounds.diff(), "block_table": _table(read, k_bounds, key.shape[1])}
        return requests.over_pages(query, key, value, *methods, **options).unsqueeze(0)
    if sliding:
        options["window_size"] = (_window(module) - 1, 0)
    # nothing decodes where there is nothing to read, and beside a window both methods are dense
    return varlen_attention(query, key, value, methods[0], cu_seq_k=k_bounds, **options).unsqueeze(0)


def _table(read: Tensor, bounds: Tensor, size: int) -> Tensor:
    """The page of every ``size``-th key of each request, from the slots of all keys."""
    width = -(-int(bounds.diff().max()) // size)
    firsts = bounds[:-1, None] + torch.arange(width, device=bounds.device) * size
    return read[firsts.clamp(max=len(read) - 1).long()] // size


def _window(module: Any) -> int:
    window = getattr(module, "sliding_window", None)
    return int(module.config.sliding_window if window is None else window)


def _refuse(module: nn.Module, method: Method, sliding: bool, given: dict[str, Any]) -> None:
    name = type(module).__name__
    if given.get("block_table") is not None:
        raise NotImplementedError(
            f"dynattn: continuous batching must not use a block table of its own: {name} passes one, which flash "
            "attention on a GPU would fill; set max_blocks_per_request=0 in the ContinuousBatchingConfig"
        )
    if sliding and not method.keeps_everything:
        raise ValueError(
            f"dynattn: continuous batching with a sliding window needs dense attention: {name} has such a layer, whose "
            f"cache forgets the keys from which {method.known_as} counts; give this layer 'dense', or use generate()"
        )
    if observers:
        raise ValueError(
            "dynattn: continuous batching cannot be observed: observing() and audit() need the calls of whole samples; "
            "use generate() or a forward of the model"
        )
