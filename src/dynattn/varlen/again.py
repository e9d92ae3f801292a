"""Steps of decoding that are repeated: one query for each text, keys in pages, and all that is not a number as before.

A server makes such a call in every layer and step, and it takes longer in Python than in arithmetic. What an earlier
call has settled (checks, route, the kernel's arguments) depends on shapes, strides and options alone, so that a plan is
kept under those as its key, as :mod:`dynattn.backends.again` does for :func:`dynattn.attention`. How many keys each
text has, and which pages, is read anew in every call. Whatever is not as expected goes the way of every other call,
which says what is wrong.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dynattn.backends import again
from dynattn.functional import call_of
from dynattn.kernels import cpu
from dynattn.kernels.pattern import Pattern
from dynattn.methods import NM
from dynattn.ops import buffers
from dynattn.ops.arguments import rows_contiguous
from dynattn.varlen import together
from dynattn.varlen.run import Options, Places
from dynattn.varlen.texts import Bounds

_MOST = 512
_INTS = (torch.int32, torch.int64)
_plans: dict[Hashable, Prepared] = {}


class Prepared(NamedTuple):
    """What a step needs besides its tensors and their numbers.

    Attributes:
        arguments: the kernel's, except for addresses.
        query_start: 0, 1, 2 and so on to the number of texts.
        room: how many keys the pages of a text hold.
    """

    arguments: cpu.PreparedTexts
    query_start: array[int]
    room: int

    def run(self, query: Tensor, key: Tensor, value: Tensor, places: Places) -> Tensor | None:
        """The output; None for a step that is another, or one to be refused."""
        starts, used, table = places.cu_seq_q, places.seqused_k, places.block_table
        counts = array("q", used.tolist())  # type: ignore[union-attr]
        if starts.tolist() != self.query_start.tolist() or not 0 <= min(counts) <= max(counts) <= self.room:  # type: ignore[union-attr]
            return None
        out, rows = buffers.packed_output(query.transpose(0, 1).unsqueeze(0), value)
        found = cpu.nm_texts_again(
            query, key, value, rows, self.arguments, query_start=self.query_start, key_start=self.query_start,
            key_count=counts, block_table=together.kernel_table(table),  # type: ignore[arg-type]
        )  # fmt: skip
        return out if found else None


def key_of(
    query: Any, key: Any, value: Any, places: Places, window: Any, method: Any, causal: Any, scale: Any, backend: Any,
    special: bool,
) -> Hashable | None:  # fmt: skip
    """The key under which the plan of a step is kept; None for a call that is not plain, or no step of decoding.

    Args:
        query, key, value, method, causal, scale, backend: as :func:`dynattn.varlen_attention` is given them, not
            checked.
        places: likewise.
        window: its ``window_size``.
        special: whether any other argument was given.
    """
    special = special or any(other is not None for other in (places.cu_seq_k, places.max_q, places.max_k))
    of_tensors = again.key_of(query, key, value, None, method, causal, scale, backend, special)
    if of_tensors is None or type(method) is not NM or type(window) is not tuple or window != (-1, -1):
        return None
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return None
    starts, used, table = numbers = places.cu_seq_q, places.seqused_k, places.block_table
    if not all(map(_are_plain_numbers, numbers)) or query.dim() != 3 or not len(query):
        return None
    if starts.shape != (len(query) + 1,) or used.shape != (len(query),) or table.dim() != 2:  # type: ignore[union-attr]
        return None
    return of_tensors, table.shape  # type: ignore[union-attr]


def _are_plain_numbers(x: Any) -> bool:
    return type(x) is Tensor and x.is_cpu and x.dtype in _INTS


def find(key: Hashable) -> Prepared | None:
    """The plan that is kept under ``key``, or None."""
    return _plans.get(key)


def remember(known: Hashable, query: Tensor, key: Tensor, value: Tensor, places: Places, options: Options) -> None:
    """Keep the plan of a step that was computed, where one kernel reads its pages in place.

    Args:
        known: what :func:`key_of` gave.
        query, key, value, places, options: those of the step.
    """
    texts, table = len(query), places.block_table
    assert table is not None
    rows, keys, values = query.transpose(0, 1).unsqueeze(0), key.transpose(1, 2), value.transpose(1, 2)
    call = call_of(rows, keys, values, options.method, None, options.causal, options.scale, 0.0, None, False)
    kernel = together.kernel_for(call, options.backend, Bounds([1] * texts, [], [1] * texts), table)
    if kernel is None or len(kernel.numbers) < texts or any(x is not rows_contiguous(x) for x in (rows, keys, values)):
        return
    _, out = buffers.packed_output(rows, values)
    pattern = Pattern.of(cast(NM, options.method), options.causal, call.scale)
    arguments = cpu.prepare_nm_texts(rows, keys, values, out, pattern, kernel.isa, texts, table_width=table.shape[1])
    if len(_plans) >= _MOST:
        _plans.clear()
    _plans[known] = Prepared(arguments, array("q", range(texts + 1)), table.shape[1] * key.shape[1])
