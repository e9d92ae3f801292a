"""What is timed: workloads as data, with the arithmetic and the bytes that each one needs.

    pairs       = Σ_i allowed keys of query i                                (of one head)
    dense FLOPs = heads · pairs · (2 · head_dim + 2 · head_dim)              (QKᵀ and PV, a multiply-add is 2)
    true FLOPs  = heads · (pairs · 2 · head_dim + kept pairs · 2 · head_dim)
    bytes       = query, key, value and output, each moved once

Training is forward and backward: the backward makes QKᵀ again, and dOVᵀ, for all pairs, and three products for the kept
ones; it reads what the forward read and wrote, and the output's gradient, and writes three gradients.

The exponentials and the choice are not counted, as is the custom; so the share of peak that a kernel reaches on its
true FLOPs says how well it runs, and its dense FLOPs over its time how much it does for the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dynattn.methods.nm import NM

DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "tf32": torch.float32,  # on a GPU, with matrix products rounded to TensorFloat-32
}  # fmt: skip
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "tf32": "tf32"}
_GRID = 4  # queries and keys are multiples of 1/4, so that scores are exact in every dtype and the choice is too
_CLIP = 4.0  # and no larger than this: 16 steps take 5 bits, bfloat16 has 8


@dataclass(frozen=True)
class Workload:
    """One attention problem, whatever solves it.

    Args:
        heads: query heads.
        q_len: queries.
        head_dim: of query, key and value.
        batch: sequences.
        kv_heads: heads of key and value; 0 for ``heads``.
        kv_len: keys; 0 for ``q_len``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``tf32``: float32 with products in TensorFloat-32.
        causal: forbid keys after the query; needs ``q_len == kv_len``, where PyTorch's alignment is ours.
        layout: order in memory. ``bhld`` is contiguous (batch, heads, length, head_dim); ``blhd`` is a transposed view
            of (batch, length, heads, head_dim), what a model's projection gives.
        training: forward and backward, with the gradients of query, key and value.

    Raises:
        ValueError: a size, dtype or layout that cannot be.
    """

    heads: int
    q_len: int
    head_dim: int
    batch: int = 1
    kv_heads: int = 0
    kv_len: int = 0
    dtype: str = "float32"
    causal: bool = False
    layout: Literal["bhld", "blhd"] = "bhld"
    training: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "kv_len", self.kv_len or self.q_len)
        sizes = (self.batch, self.heads, self.kv_heads, self.q_len, self.kv_len, self.head_dim)
        if min(sizes) < 1 or self.heads % self.kv_heads:
            raise ValueError(f"Workload: sizes must be positive and heads a multiple of kv_heads: got {self}")
        if self.dtype not in DTYPES or self.layout not in ("bhld", "blhd"):
            raise ValueError(f"Workload: dtype must be one of {', '.join(DTYPES)}, layout bhld or blhd: got {self}")
        if self.causal and self.q_len != self.kv_len:
            raise ValueError(f"Workload: causal needs q_len == kv_len, since PyTorch aligns otherwise: got {self}")

    @property
    def label(self) -> str:
        """Short and unique within a suite: ``12×2048×64 causal``."""
        heads = str(self.batch * self.heads)
        heads += f"/{self.batch * self.kv_heads}" if self.kv_heads != self.heads else ""
        length = str(self.q_len) if self.q_len == self.kv_len else f"{self.q_len}→{self.kv_len}"
        words = [f"{heads}×{length}×{self.head_dim}"]
        words += ["causal"] if self.causal else []
        words += [_SHORT[self.dtype]] if self.dtype != "float32" else []
        words += ["transposed"] if self.layout == "blhd" else []
        words += ["training"] if self.training else []
        return " ".join(words)

    @property
    def pairs(self) -> int:
        """Pairs of query and key that may attend, of one head."""
        return sum(self._allowed(i) for i in range(self.q_len))

    @property
    def dense_flops(self) -> int:
        """FLOPs of dense attention."""
        products = 7 if self.training else 2
        return self.batch * self.heads * self.pairs * products * 2 * self.head_dim

    @property
    def bytes(self) -> int:
        """Query, key, value and output, each moved once; three times that in training."""
        rows = (6 if self.training else 2) * (self.heads * self.q_len + self.kv_heads * self.kv_len)
        return self.batch * rows * self.head_dim * DTYPES[self.dtype].itemsize

    def kept_pairs(self, method: NM) -> float:
        """Pairs that ``method`` keeps, of one head.

        Exact without window and sinks. With them, the choice overlaps the band as often as chance has it: the mean
        over scores that are exchangeable.
        """
        kept = sum(_chosen(method, self._allowed(i)) for i in range(self.q_len))
        band = sum(self._band(i, method) for i in range(self.q_len))
        return kept + (1 - method.n / method.m) * band

    def flops(self, method: NM) -> float:
        """FLOPs under ``method``: the whole QKᵀ, PV for the kept pairs, and the same products in the backward."""
        whole, kept = (3, 4) if self.training else (1, 1)
        return self.batch * self.heads * 2 * self.head_dim * (whole * self.pairs + kept * self.kept_pairs(method))

    def inputs(self, seed: int = 0, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, drawn from a normal distribution on ``device``.

        Queries and keys are rounded to a grid on which every score is exact, whatever the order of the sum: then
        two right kernels choose the same pairs, ties included, and their results can be compared.
        """
        generator = torch.Generator(device).manual_seed(seed)
        query = self._draw(self.heads, self.q_len, generator)
        key = self._draw(self.kv_heads, self.kv_len, generator)
        value = self._draw(self.kv_heads, self.kv_len, generator)
        return _to_grid(query), _to_grid(key), value

    def _allowed(self, i: int) -> int:
        return i + 1 if self.causal else self.kv_len

    def _band(self, i: int, method: NM) -> int:
        """Allowed keys in the window or among the sinks of query i."""
        allowed, position = self._allowed(i), i + self.kv_len - self.q_len
        sinks = min(method.sinks, allowed)
        start = min(max(position - method.window + 1, sinks), allowed)
        end = min(max(position + method.window, start), allowed) if method.window else start
        return sinks + end - start

    def _draw(self, heads: int, length: int, generator: torch.Generator) -> Tensor:
        order = (self.batch, length, heads) if self.layout == "blhd" else (self.batch, heads, length)
        x = torch.randn(*order, self.head_dim, generator=generator, device=generator.device)
        return (x.transpose(1, 2) if self.layout == "blhd" else x).to(DTYPES[self.dtype])


def _chosen(method: NM, keys: int) -> int:
    """How many of the first ``keys`` keys the choice keeps."""
    n, stride = method.n, method.stride
    blocks, rest = divmod(keys, method.m * stride)
    size, larger = divmod(rest, stride)  # of the last block's groups, `larger` have a key more
    return blocks * stride * n + larger * min(n, size + 1) + (stride - larger) * min(n, size)


@dataclass(frozen=True)
class Case:
    """A workload and the method that solves it."""

    workload: Workload
    method: NM

    @property
    def flops(self) -> float:
        """What the method needs."""
        return self.workload.flops(self.method)

    @property
    def dense_flops(self) -> int:
        """What dense attention needs for the same."""
        return self.workload.dense_flops

    @property
    def bytes(self) -> int:
        """Moved at least once."""
        return self.workload.bytes

    @property
    def intensity(self) -> float:
        """FLOPs a byte: where the case stands on the roofline."""
        return self.flops / self.bytes


def _to_grid(x: Tensor) -> Tensor:
    return ((x * _GRID).round() / _GRID).clamp(-_CLIP, _CLIP)
