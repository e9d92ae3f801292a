"""N:M weights in packed form: of each M inputs in a row the N that have a weight, and their places, in bits.

A row of weights is stored in blocks of 16 groups of M inputs. A block holds the first weights of its groups, then the
second ones, up to the N-th: ``values``. ``places`` has 16 bits for each of these, one a group, and for M = 4 another
16, the high bits of the places; two of 16 bits share a word. So a packed row takes N / M of the dense one and one bit
for each pair of inputs (1:2) or for each input (2:4): of float32, 0.516 and 0.531 of the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynattn.kernels.cpu.linear_calls import NM_GROUPS

_MS = (2, 4)
_WORD = 32


@dataclass(frozen=True, eq=False)
class PackedNM:
    """The weights of a linear layer in packed form; :func:`pack_nm` makes it.

    Attributes:
        values: (out, blocks · n · 16), in the weights' dtype.
        places: int32 (out, words).
        n: weights of a group that are stored.
        m: inputs of a group.
        inputs: inputs of the layer. The last block is filled up with weights of 0.

    Raises:
        ValueError: the tensors do not belong together; kernels read what their sizes promise.
    """

    values: Tensor
    places: Tensor
    n: int
    m: int
    inputs: int

    def __post_init__(self) -> None:
        blocks = -(-self.inputs // (self.m * NM_GROUPS))
        stored = blocks * self.n * NM_GROUPS
        rows = self.values.shape[0] if self.values.dim() == 2 else -1
        words = -(-stored * (self.m.bit_length() - 1) // _WORD)
        if self.values.shape != (rows, stored) or self.places.shape != (rows, words):
            raise ValueError(
                f"PackedNM: values and places must be (out, {stored}) and (out, {words}): got "
                f"{tuple(self.values.shape)} and {tuple(self.places.shape)}; pack the weight with pack_nm()"
            )
        if self.places.dtype != torch.int32 or self.places.device != self.values.device:
            raise ValueError(
                f"PackedNM: places must be int32 beside the values: got {self.places.dtype} on {self.places.device}; "
                "pack the weight with pack_nm()"
            )

    @property
    def bytes(self) -> int:
        """What it takes in memory, and what a call reads."""
        return self.values.nbytes + self.places.nbytes

    def unpack(self) -> Tensor:
        """The weights as they were, (out, in)."""
        return unpacked(self.values, self.places, self.n, self.m, self.inputs)


def pack_nm(weight: Tensor, n: int, m: int) -> PackedNM:
    """Weights of which at most ``n`` of each ``m`` inputs in a row are not 0, in packed form.

    Args:
        weight: (out, in), floating point, masked already. The last group may be shorter than ``m``.
        n: at least 1 and less than ``m``.
        m: 2 or 4.

    Returns:
        The same weights: ``pack_nm(weight, n, m).unpack()`` equals ``weight``.

    Raises:
        TypeError: the weight is no floating-point tensor.
        ValueError: ``n`` and ``m`` are none of those, the weight has not two dimensions, or a group has more weights.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"pack_nm: weight must be a floating-point tensor: got {kind}; convert with .to()")
    if m not in _MS or not 1 <= n < m:
        raise ValueError(f"pack_nm: n:m must be 1:2, 1:4, 2:4 or 3:4: got {n}:{m}; use one of these")
    if weight.dim() != 2:
        raise ValueError(f"pack_nm: weight must be (out, in): got {tuple(weight.shape)}; pack each matrix by itself")
    outputs, inputs = weight.shape
    filled = torch.nn.functional.pad(weight, (0, -inputs % (m * NM_GROUPS)))
    groups = filled.reshape(outputs, filled.shape[1] // m, m)
    has = groups != 0
    most = int(has.sum(-1).max()) if has.numel() else 0
    if most > n:
        raise ValueError(
            f"pack_nm: at most {n} of {m} inputs in a row may have a weight: one group has {most}; mask the weight "
            f"first, with dynattn.sparsity.NMWeights({n}, {m}) for example"
        )
    # those with a weight first, in order, and as many others as it takes
    chosen = has.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :n].sort(-1).values
    blocks = groups.shape[1] // NM_GROUPS
    values, place = (
        x.reshape(outputs, blocks, NM_GROUPS, n).transpose(2, 3) for x in (groups.gather(-1, chosen), chosen)
    )  # [outputs, blocks, n, 16]
    values = values.reshape(outputs, blocks * n * NM_GROUPS).contiguous()
    return PackedNM(values, _to_words(place, m), n, m, inputs)


def unpacked(values: Tensor, places: Tensor, n: int, m: int, inputs: int) -> Tensor:
    """The weights, (out, in), of the tensors of :class:`PackedNM`; differentiable."""
    outputs = values.shape[0]
    blocks = values.shape[1] // (n * NM_GROUPS)
    planes = m.bit_length() - 1
    bits = places.unsqueeze(-1) >> torch.arange(_WORD, device=places.device, dtype=places.dtype) & 1
    bits = bits.flatten(1)[:, : blocks * n * planes * NM_GROUPS].reshape(outputs, blocks, n, planes, NM_GROUPS).long()
    place = (bits << torch.arange(planes, device=places.device).unsqueeze(-1)).sum(-2)  # [outputs, blocks, n, 16]
    by_group, at = (
        x.transpose(2, 3).reshape(outputs, blocks * NM_GROUPS, n)
        for x in (values.reshape(outputs, blocks, n, NM_GROUPS), place)
    )
    groups = values.new_zeros(outputs, blocks * NM_GROUPS, m).scatter(-1, at, by_group)
    return groups.flatten(1)[:, :inputs]


def _to_words(place: Tensor, m: int) -> Tensor:
    """Places (outputs, blocks, n, 16) as bits of words: int32 (outputs, words)."""
    planes = torch.arange(m.bit_length() - 1, device=place.device).unsqueeze(-1)
    bits = (place.unsqueeze(3) >> planes & 1).flatten(1)  # [outputs, blocks · n · planes · 16]
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % _WORD))
    words = (bits.view(place.shape[0], bits.shape[1] // _WORD, _WORD) << torch.arange(_WORD, device=place.device)).sum(
        -1
    )
    return (words - (words >> (_WORD - 1) << _WORD)).to(torch.int32)  # the highest bit is the sign
