"""The data that goes to and from backends: a call, the problem that it poses, the plan for it, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dynattn.methods.base import Method
from dynattn.ops.sharding import is_sharded


class Problem(NamedTuple):
    """Everything that the choice of a backend depends on: a call without the values of its tensors.

    Attributes:
        device: the device of all tensors.
        dtype: the dtype of query, key and value.
        method: what to keep.
        head_dim: the head_dim of query and key.
        value_dim: the last dimension of value.
        q_len, kv_len: the number of queries and of keys.
        causal: whether keys after the query are forbidden.
        masked: whether there is a mask.
        mask_by_query: whether the mask is added to the scores, or is not the same for all queries.
        mask_needs_grad: whether the mask's gradient will be asked for.
        aux: whether the certificate is asked for.
        dropout: whether weights are dropped.
        needs_grad: whether gradients will be asked for.
        sharded: whether the tensors are ``DTensor``.
        grouped: whether query heads share key heads.
    """

    device: torch.device
    dtype: torch.dtype
    method: Method
    head_dim: int
    value_dim: int
    q_len: int = 1
    kv_len: int = 1
    causal: bool = False
    masked: bool = False
    mask_by_query: bool = False
    mask_needs_grad: bool = False
    aux: bool = False
    dropout: bool = False
    needs_grad: bool = False
    sharded: bool = False
    grouped: bool = False


class Call(NamedTuple):
    """A call of :func:`dynattn.attention` whose arguments are checked.

    Attributes:
        query, key, value, attn_mask, method, causal, dropout_p: as :func:`dynattn.attention` takes them.
        seed: the seed of dropout, an int64 tensor of one element; None without dropout.
        scale: factor of the scores.
        aux: whether the certificate is asked for.
        needs_grad: whether a gradient may be asked for.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    seed: Tensor | None
    method: Method
    causal: bool
    scale: float
    dropout_p: float
    aux: bool
    needs_grad: bool

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """The tensors with which the arguments of every operator begin."""
        return self[:5]

    @property
    def problem(self) -> Problem:
        """The problem that this call poses."""
        query, mask = self.query, self.attn_mask
        return Problem(
            query.device, query.dtype, self.method, query.shape[3], self.value.shape[3], query.shape[2],
            self.key.shape[2], self.causal, mask is not None,
            mask is not None and (mask.dtype != torch.bool or (mask.dim() > 1 and mask.shape[-2] != 1)),
            mask is not None and self.needs_grad and mask.requires_grad, self.aux, self.dropout_p > 0, self.needs_grad,
            is_sharded(query), query.shape[1] != self.key.shape[1],
        )  # fmt: skip


class Result(NamedTuple):
    """What a backend computed; all but ``out`` are None, or hold nothing, where the certificate was not asked for.

    Attributes:
        out: (batch, heads, q_len, value_dim), in the dtype of the query.
        logsumexp: (batch, heads, q_len), float32 or float64, over the kept scores.
        kept_mass: the dense weight of the kept pairs, in the same shape and dtype.
        kept: the number of pairs kept, int32, in the same shape.
        allowed: the number of pairs allowed, int32, in the same shape.
    """

    out: Tensor
    logsumexp: Tensor | None = None
    kept_mass: Tensor | None = None
    kept: Tensor | None = None
    allowed: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """Which backend runs, and why the ones before it do not; print it to read it.

    Attributes:
        backend: the name of the backend, as ``dynattn.attention(..., backend=...)`` takes it; None where heads differ
            in their method, and each of ``parts`` has a backend of its own.
        reason: what the backend is, and why it was chosen.
        rejected: for each faster backend, why it cannot run here.
        parts: where the method is a ``PerHead``, the plan of each method, under a key that names it and its heads in
            words.
    """

    backend: str | None
    reason: str
    rejected: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Plan] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.parts:
            return "\n".join(f"{heads}: {plan}" for heads, plan in self.parts.items())
        lines = [f"{self.backend}: {self.reason}"]
        return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.rejected.items()])
