"""Packs the arguments of the CPU kernels into bytes: the structures of ``dynattn_cpu.h``, field by field.

Each structure is a table of names and C types, in the header's order. A caller gives all values by name, and the table
puts them in order. ``struct`` packs them in a third of the time that ``ctypes`` fields take.
"""

from __future__ import annotations

import struct
from itertools import chain
from operator import itemgetter
from typing import Any

import torch

POINTER, INT32, UINT32, INT64, UINT64, FLOAT = "P", "i", "I", "q", "Q", "f"

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.bool: 3, torch.int8: 4}
"""The numbers of dtypes in the header."""


def _format(fields: list[tuple[str, str, int]]) -> str:
    return " ".join(f"{length}{kind}" for _, kind, length in fields)


class Structure:
    """A C structure: its own fields, behind those of the structure that it begins with.

    Attributes:
        name: its name in the header.
        begins_with: the name of its first member and the structure that this member is, or None. The bytes that
            :meth:`pack` gives belong behind those of that structure.
        fields: the name, C type and length of each of its own fields, in order. A length of 1 means no array.
        size: the number of bytes of the whole structure.
    """

    def __init__(
        self, name: str, fields: list[tuple[str, str, int]], begins_with: tuple[str, Structure] | None = None
    ) -> None:
        self.name, self.fields, self.begins_with = name, fields, begins_with
        self._layout = struct.Struct(_format(fields) + " 0q")
        self.size = self._layout.size + (begins_with[1].size if begins_with else 0)
        self._values = itemgetter(*(field for field, _, _ in fields))
        arrays = [i for i, (_, _, length) in enumerate(fields) if length > 1]
        self._first, self._end = (arrays[0], arrays[-1] + 1) if arrays else (0, 0)

    def pack(self, **values: Any) -> bytes:
        """The structure's own fields as bytes.

        Args:
            values: one for each field, by name; a tuple for an array.

        Raises:
            KeyError: a field has no value.
            struct.error: a value does not fit its type.
        """
        ordered = self._values(values)
        arrays = chain.from_iterable(ordered[self._first : self._end])
        return self._layout.pack(*ordered[: self._first], *arrays, *ordered[self._end :])

    def part(self, first: str, last: str) -> struct.Struct:
        """The layout of neighbouring fields by themselves, for a caller that knows the others already.

        Args:
            first, last: the names of the first and the last of them.

        Raises:
            ValueError: there is no such field.
        """
        names = [name for name, _, _ in self.fields]
        return struct.Struct(_format(self.fields[names.index(first) : names.index(last) + 1]))


NM_FORWARD = Structure(
    "NMForwardArgs",
    [
        ("query", POINTER, 1),
        ("key", POINTER, 1),
        ("value", POINTER, 1),
        ("mask", POINTER, 1),
        ("out", POINTER, 1),
        ("logsumexp", POINTER, 1),
        ("kept_mass", POINTER, 1),
        ("kept", POINTER, 1),
        ("allowed", POINTER, 1),
        ("blocks", POINTER, 1),
        ("threshold", POINTER, 1),
        ("last_tie", POINTER, 1),
        ("query_strides", INT64, 3),
        ("key_strides", INT64, 3),
        ("value_strides", INT64, 3),
        ("out_strides", INT64, 3),
        ("mask_strides", INT64, 4),
        ("batch", INT64, 1),
        ("heads", INT64, 1),
        ("kv_heads", INT64, 1),
        ("q_len", INT64, 1),
        ("kv_len", INT64, 1),
        ("head_dim", INT64, 1),
        ("value_dim", INT64, 1),
        ("parallel", POINTER, 1),
        ("seed", UINT64, 1),
        ("scale", FLOAT, 1),
        ("dtype", INT32, 1),
        ("mask_dtype", INT32, 1),
        ("n", INT32, 1),
        ("m", INT32, 1),
        ("window", INT32, 1),
        ("sinks", INT32, 1),
        ("within", INT32, 1),
        ("within_sinks", INT32, 1),
        ("beyond_blocks", INT32, 1),
        ("stride", INT32, 1),
        ("causal", INT32, 1),
        ("isa", INT32, 1),
        ("threads", INT32, 1),
        ("needs_grad", INT32, 1),
        ("block_queries", INT32, 1),
        ("block_size", INT32, 1),
        ("drop_below", UINT32, 1),
        ("keep_factor", FLOAT, 1),
        ("first_batch", INT32, 1),
        ("first_head", INT32, 1),
        ("parts", INT32, 1),
    ],
)
ROW_FORWARD = Structure(
    "RowForwardArgs",
    [
        ("most", INT64, 1),
        ("floor", INT64, 1),
        ("numerator", INT64, 1),
        ("denominator", INT64, 1),
        ("weight", FLOAT, 1),
        ("mass", FLOAT, 1),
    ],
    begins_with=("call", NM_FORWARD),
)
SKIP_FORWARD = Structure(
    "SkipForwardArgs",
    [("kept", POINTER, 1), ("margin", FLOAT, 1)],
    begins_with=("call", NM_FORWARD),
)
BLOCK_FORWARD = Structure(
    "BlockForwardArgs",
    [
        ("chosen", POINTER, 1),
        ("floor", INT64, 1),
        ("numerator", INT64, 1),
        ("denominator", INT64, 1),
        ("mass", FLOAT, 1),
        ("alike", FLOAT, 1),
        ("window", INT32, 1),
        ("sinks", INT32, 1),
    ],
    begins_with=("call", NM_FORWARD),
)
NM_BACKWARD = Structure(
    "NMBackwardArgs",
    [
        ("grad_out", POINTER, 1),
        ("grad_logsumexp", POINTER, 1),
        ("d_query", POINTER, 1),
        ("d_key", POINTER, 1),
        ("d_value", POINTER, 1),
        ("d_scores", POINTER, 1),
        ("grad_out_strides", INT64, 3),
        ("d_query_strides", INT64, 3),
        ("d_key_strides", INT64, 3),
        ("d_value_strides", INT64, 3),
    ],
    begins_with=("forward", NM_FORWARD),
)
LINEAR = Structure(
    "LinearArgs",
    [
        ("x", POINTER, 1),
        ("weight", POINTER, 1),
        ("places", POINTER, 1),
        ("scale", POINTER, 1),
        ("bias", POINTER, 1),
        ("keep", POINTER, 1),
        ("thresholds", POINTER, 1),
        ("factors", POINTER, 1),
        ("out", POINTER, 1),
        ("tokens", INT64, 1),
        ("inputs", INT64, 1),
        ("outputs", INT64, 1),
        ("weight_stride", INT64, 1),
        ("threshold_stride", INT64, 1),
        ("parallel", POINTER, 1),
        ("dtype", INT32, 1),
        ("weight_dtype", INT32, 1),
        ("n", INT32, 1),
        ("m", INT32, 1),
        ("isa", INT32, 1),
        ("threads", INT32, 1),
    ],
)
NM_TEXTS = Structure(
    "NMTextsArgs",
    [
        ("query_start", POINTER, 1),
        ("key_start", POINTER, 1),
        ("key_count", POINTER, 1),
        ("block_table", POINTER, 1),
        ("texts", INT64, 1),
        ("table_width", INT64, 1),
        ("pages", INT64, 1),
        ("page_size", INT64, 1),
    ],
    begins_with=("call", NM_FORWARD),
)
