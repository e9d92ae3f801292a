"""A prompt that is read once, with dense attention, and the caches that each way of decoding makes of it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.integrations.transformers import Call, observing, register
from dynattn.lab.decode.ways import EVERY, Way

PIECE = EVERY
"""How many tokens are read at once after the prompt. Ways that evict tokens do so at the end of each piece."""


QUERIES = 256
"""So many of a prompt's last queries are kept, by which caches that are cut once choose."""


class Prompt(NamedTuple):
    """The result of reading a prompt.

    Attributes:
        ids: (1, length).
        keys: the keys of each layer, (1, kv_heads, length, head_dim).
        values: likewise.
        received: attention that each token received in each layer, (1, length).
        calls: the attention call of each layer, with the last :data:`QUERIES` queries alone.
    """

    ids: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    received: tuple[Tensor, ...]
    calls: tuple[Call, ...]


@torch.inference_mode()
def read(model: Any, ids: Tensor) -> Prompt:
    """Read a prompt with dense attention.

    Args:
        model: a Transformers decoder.
        ids: (1, length).
    """
    from transformers import DynamicCache

    from dynattn.kv_caches.spatten import received

    register()
    weights: dict[int, Tensor] = {}
    calls: dict[int, Call] = {}

    def look(call: Call) -> None:
        weights[call.layer] = received(call)
        calls[call.layer] = call._replace(query=call.query[:, :, -QUERIES:].clone())

    cache: Any = DynamicCache(config=model.config)
    model.set_attn_implementation("dynattn:dense")
    with observing(look):
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    keys, values = zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
    layers = range(len(keys))
    return Prompt(ids, keys, values, tuple(weights[i] for i in layers), tuple(calls[i] for i in layers))


@torch.inference_mode()
def cache_of(model: Any, prompt: Prompt, way: Way) -> Any:
    """The cache that reading the prompt with this way's cache leaves. The prompt is not read anew, except by ways that
    have to.

    Raises:
        ValueError: the way's cache is cut by more queries than the prompt has kept.
    """
    from dynattn.kv_caches import SpAttenCache
    from dynattn.kv_caches.cut_once import CutOnceCache

    if way.read is not None:
        return way.read(model, prompt.ids)
    cache = way.cache(model.config)
    options = getattr(cache, "options", None)
    if options is not None and options.window > QUERIES:
        raise ValueError(f"cache_of: a window must be at most {QUERIES} queries: got {options.window}, of {way.name}")
    for index, (keys, values, received, call) in enumerate(zip(*prompt[1:], strict=True)):
        cache.update(keys, values, index)
        if isinstance(cache, SpAttenCache):
            cache.layers[index].take(received, first=index == 0)
        elif isinstance(cache, CutOnceCache):
            cache.layers[index].attended(call._replace(key=keys, value=values))
    return cache


@torch.inference_mode()
def tell(model: Any, prompt: Prompt, way: Way, ids: Tensor) -> Tensor:
    """Read on by one way after a prompt that was read densely.

    Args:
        model: a Transformers decoder.
        prompt: what was read.
        way: how to decode.
        ids: (1, length), what follows.

    Returns:
        Logits, (length, vocabulary).
    """
    cache = cache_of(model, prompt, way)
    model.set_attn_implementation(way.together)
    pieces = ids.split(PIECE, 1)
    return torch.cat([model(input_ids=each, past_key_values=cache, use_cache=True).logits[0] for each in pieces])


@torch.inference_mode()
def score(model: Any, prompt: Prompt, way: Way, ids: Tensor, answer: int) -> tuple[float, bool]:
    """Read on by one way after a prompt that was read densely, and score the end.

    Args:
        model: a Transformers decoder.
        prompt: what was read, the beginning of ``ids``.
        way: how to decode.
        ids: (1, length), the prompt, and what follows: at least one token, then the answer.
        answer: tokens at the end that are scored.

    Returns:
        Mean NLL of the answer, in nats per token, and whether each of its tokens was the likeliest.

    Raises:
        ValueError: no token stands between prompt and answer; the first of the answer would be the prompt's to tell.
    """
    start = prompt.keys[0].shape[2]
    if start + answer >= ids.shape[1]:
        raise ValueError(f"score: a token must stand between prompt and answer: got {start}, {answer}, {ids.shape[1]}")
    told, target = tell(model, prompt, way, ids[:, start:-1])[-answer:].float(), ids[0, -answer:]
    return nn.functional.cross_entropy(told, target).item(), bool((told.argmax(-1) == target).all())


@torch.inference_mode()
def step_seconds(model: Any, prompt: Prompt, way: Way, ids: Tensor) -> float:
    """Seconds for decoding tokens one by one after a prompt, which is not timed.

    Args:
        model: a Transformers decoder.
        prompt: what was read.
        way: how to decode.
        ids: (1, steps), tokens to decode.
    """
    cache = cache_of(model, prompt, way)
    model.set_attn_implementation(way.implementation)
    start = time.perf_counter()
    for token in ids.split(1, 1):
        model(input_ids=token, past_key_values=cache, use_cache=True)
    return time.perf_counter() - start


def cache_bytes(cache: Any) -> int:
    """Memory of keys and values, and of what the cache holds besides."""
    known = getattr(cache, "bytes", None)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) if known is None else known


def shortened(prompt: Prompt, tokens: int) -> Prompt:
    """The first tokens of the prompt alone. With so few keys, a step shows what everything but attention costs."""
    return Prompt(
        prompt.ids[:, :tokens],
        tuple(keys[:, :, :tokens] for keys in prompt.keys),
        tuple(values[:, :, :tokens] for values in prompt.values),
        tuple(received[:, :tokens] for received in prompt.received),
        tuple(call._replace(query=call.query[:, :, -tokens:]) for call in prompt.calls),
    )


def repeated(prompt: Prompt, times: int) -> Prompt:
    """The prompt repeated so many times that it is long enough to time; the values of keys do not change the time."""
    return Prompt(
        prompt.ids.repeat(1, times),
        tuple(keys.repeat(1, 1, times, 1) for keys in prompt.keys),
        tuple(values.repeat(1, 1, times, 1) for values in prompt.values),
        tuple(received.repeat(1, times) for received in prompt.received),
        prompt.calls,
    )
