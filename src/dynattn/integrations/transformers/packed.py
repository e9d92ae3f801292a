"""Packed batches, in which a sample holds several texts one after another that must not see each other.

Position ids that start anew mark them. Where neither a mask nor a cache is given, Transformers makes a block mask from
them; :func:`block_mask` has it do so for new caches and masks too. Where attention is told the lengths, each text is
computed by itself. What remains would let the texts see each other, and is refused.
"""

from __future__ import annotations

import threading
import weakref
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor

from dynattn.integrations.transformers.masks import visible

_REMEDY = (
    "pass position_ids that start anew with use_cache=False and without attention_mask, from which Transformers makes "
    "a mask, or pad the texts in place of packing them"
)
_hold_several: WeakSet[Any] = WeakSet()  # caches that a packed batch has filled
_masked = threading.local()  # .cache: a weak reference to the cache for which this thread made a mask last


class Span(NamedTuple):
    """Where a text lies: its queries and its keys, from the first to the one behind the last."""

    queries: slice
    keys: slice


def texts(kwargs: dict[str, Any], mask: Tensor | None, batch: int, q_len: int, kv_len: int) -> list[Span] | None:
    """The texts that a sample holds, where attention is told; None where it holds one, or is not told.

    Args:
        kwargs: what else a model passes to attention. ``cu_seq_lens_q`` and ``cu_seq_lens_k`` say it; ``position_ids``
            that start anew do where the mask keeps the texts apart.
        mask: as attention gets it.
        batch: the number of samples; lengths count through a single one.
        q_len, kv_len: queries and keys of the sample.
    """
    if batch != 1 or torch.compiler.is_compiling():
        return None
    given = kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k")
    if all(isinstance(bounds, Tensor) for bounds in given):
        return _spans(*(bounds.flatten().tolist() for bounds in given), q_len, kv_len)  # type: ignore[union-attr]
    positions = kwargs.get("position_ids")
    if (
        mask is None
        or q_len != kv_len
        or q_len < 2
        or not isinstance(positions, Tensor)
        or positions.shape != (1, q_len)
    ):
        return None
    starts = (positions[0, 1:] < positions[0, :-1]).nonzero().flatten() + 1
    pairs = visible(mask)
    before = starts - 1
    starts = starts[pairs.expand(1, -1, q_len, kv_len)[0, :, before, before].any(0)]  # padding is no text
    bounds = [0, *starts.tolist(), q_len]
    spans = _spans(bounds, bounds, q_len, kv_len)
    return spans if spans and not any(_seen_outside(pairs, span) for span in spans) else None


def _seen_outside(pairs: Tensor, span: Span) -> bool:
    """Whether a text's queries see a key of another text."""
    pairs = pairs[..., span.queries, :] if pairs.shape[-2] > 1 else pairs
    return bool(pairs[..., : span.keys.start].any()) or bool(pairs[..., span.keys.stop :].any())


def _spans(of_queries: list[int], of_keys: list[int], q_len: int, kv_len: int) -> list[Span] | None:
    """The texts between such bounds; None where there is one, or the bounds are not of such a sample."""
    fit = all(
        bounds[0] == 0 and bounds[-1] == length and bounds == sorted(bounds)
        for bounds, length in ((of_queries, q_len), (of_keys, kv_len))
    )
    if not fit or len(of_queries) != len(of_keys) or len(of_queries) < 3:
        return None
    return [Span(slice(*q), slice(*k)) for q, k in zip(pairwise(of_queries), pairwise(of_keys), strict=True)]


def block_mask(
    made: tuple[Any, ...], position_ids: Any, attention_mask: Any, past_key_values: Any, batch: int
) -> tuple[Any, ...]:
    """What Transformers found out for a mask, with the texts of a packed batch kept apart.

    A compiled graph asserts that positions do not start anew while it runs, since they are not known before: it raises
    RuntimeError, and does not say where; on a GPU the error comes as one of the device.

    Args:
        made: what ``transformers.masking_utils._preprocess_mask_arguments`` returned: whether the mask is finished, the
            mask, the number of each token's text or None, and lengths and offsets of queries and keys.
        position_ids: (batch, q_len), as a model gives them to Transformers' mask functions; all else passes.
        attention_mask: (batch, length) or None; masks of other shapes are the caller's own, and pass.
        past_key_values: the cache, or None.
        batch: the number of samples.

    Raises:
        ValueError: a position is lower than the one before it, neither is padding, and the cache has more than these
            tokens; or the cache holds several texts that would now be read as one.
    """
    if not torch.compiler.is_compiling():
        _masked.cache = None if past_key_values is None else weakref.ref(past_key_values)
    if made[0]:
        return made
    if past_key_values is not None and past_key_values in _hold_several and not _is_new(made):
        raise ValueError(
            "dynattn: a cache must hold one text a sample: this one was filled by a packed batch, and the tokens that "
            "come now would see all of its texts; start from an empty cache, with padded texts"
        )
    place = _restart(position_ids, attention_mask, past_key_values)
    if place is None:
        return made
    if not _is_new(made):
        raise ValueError(
            "dynattn: packed batches are not supported with a cache that has more slots than their tokens: "
            f"position_ids start anew at {list(place)}, and the texts before and after would see each other; {_REMEDY}"
        )
    if past_key_values is not None:
        _hold_several.add(past_key_values)
    numbers = torch.nn.functional.pad((position_ids[:, 1:] < position_ids[:, :-1]).cumsum(-1), (1, 0))
    return (*made[:2], numbers.expand(batch, -1), *made[3:])


def note_several(key: Tensor) -> None:
    """Note that the cache that holds these keys was filled by a packed batch, so that no later token is read with it.

    Masks are made for a cache before attention runs over its keys, and are not told of lengths; attention is told of
    lengths, and not of the cache.

    Args:
        key: the keys of several texts, as a cache returned them; or those of no cache.
    """
    cache = getattr(_masked, "cache", None)
    cache = None if cache is None else cache()
    of_texts = getattr(cache, "self_attention_cache", cache)
    if any(getattr(layer, "keys", None) is key for layer in getattr(of_texts, "layers", ())):
        _hold_several.add(cache)


def _is_new(made: tuple[Any, ...]) -> bool:
    """Whether the keys are those of the queries, with none before them and no free slots behind."""
    _, _, _, q_len, kv_len, offset, _ = made
    return not isinstance(offset, Tensor) and offset == 0 and q_len == kv_len


def _restart(position_ids: Any, attention_mask: Any, past_key_values: Any) -> tuple[int, int] | None:
    """Where positions first start anew, between tokens that are no padding, and Transformers makes no block mask."""
    if not isinstance(position_ids, Tensor) or position_ids.dim() != 2 or position_ids.shape[1] < 2:
        return None
    if attention_mask is None and past_key_values is None:
        return None
    # at their full length, since an exported program would be bound to lengths that are not 1 when one is taken away
    follows = torch.arange(position_ids.shape[1], device=position_ids.device) > 0
    restarts = follows & (position_ids < position_ids.roll(1, 1))
    if isinstance(attention_mask, Tensor):
        if attention_mask.shape[1] < position_ids.shape[1]:
            return None
        text = attention_mask[:, -position_ids.shape[1] :].bool()
        restarts = restarts & text & text.roll(1, 1)
    if torch.compiler.is_compiling():
        given = "a cache" if attention_mask is None else "an attention_mask"
        said = f"dynattn: packed batches are not supported with {given} in a compiled model: position_ids start anew"
        torch._assert_async(~restarts.any(), f"{said}; {_REMEDY}")  # type: ignore[attr-defined]
        return None
    if not bool(restarts.any()):
        return None
    sample, place = (int(i) for i in restarts.nonzero()[0])
    return sample, place


def refuse_lengths(kwargs: dict[str, Any], mask: Tensor | None, q_len: int, kv_len: int) -> None:
    """Refuse lengths of packed texts that the mask does not keep apart.

    Args:
        kwargs: what else a model passes to attention: ``cu_seq_lens_q``, ``max_length_q`` and their like for keys.
        mask: as attention gets it.
        q_len: queries of a sample.
        kv_len: keys of a sample.

    Raises:
        ValueError: they say that a sample holds several texts, and the mask lets them see each other.
    """
    for side, length in (("q", q_len), ("k", kv_len)):
        bounds, longest = kwargs.get(f"cu_seq_lens_{side}"), kwargs.get(f"max_length_{side}")
        if isinstance(bounds, Tensor):
            _hold(_apart(bounds, mask, q_len, kv_len, length), f"cu_seq_lens_{side}")
        elif longest is not None:
            _hold(_short(longest, mask, q_len, kv_len), f"max_length_{side}")


def _apart(bounds: Tensor, mask: Tensor | None, q_len: int, kv_len: int, length: int) -> bool | Tensor:
    """Whether no query at the start of a text sees the key before it."""
    inner = bounds.flatten()[1:-1]
    place = inner % length
    compiling = torch.compiler.is_compiling()
    if not compiling and not bool(place.any()):  # different samples do not see each other anyway
        return True
    if mask is None or q_len != kv_len:
        return compiling and mask is not None
    pairs = visible(mask).expand(*mask.shape[:2], q_len, kv_len)
    seen = pairs[(inner // length) % len(pairs), :, place, place - 1].any(1) & (place > 0)
    return ~seen.any()


def _short(longest: Any, mask: Tensor | None, q_len: int, kv_len: int) -> bool | Tensor:
    """Whether the mask cuts samples into runs of queries that see the key before them, each at most this long."""
    if int(longest) >= max(q_len, kv_len):
        return True
    if mask is None or q_len != kv_len:
        return False
    linked = visible(mask).expand(*mask.shape[:2], q_len, kv_len).any(1).diagonal(-1, 1, 2)
    places = torch.arange(1, q_len, device=linked.device)
    starts = torch.where(linked, 0, places).cummax(1).values
    return (places - starts).amax() < int(longest)


def _hold(kept: bool | Tensor, name: str) -> None:
    """Raise unless texts are kept apart: at once, or in a graph while it runs."""
    said = f"dynattn: packed batches are not supported: {name} says that texts share a sample; {_REMEDY}"
    if isinstance(kept, Tensor) and torch.compiler.is_compiling():
        torch._assert_async(kept, said)  # type: ignore[attr-defined]
    elif not bool(kept):
        raise ValueError(said)
