"""``torch.func.vmap`` over the operator: the mapped dimension is folded into the batch, and unfolded again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BACKWARD_GRADS = 4  # the tensors in front of the inputs: grad_out, grad_logsumexp, out, logsumexp


def forward(
    info: Any, in_dims: tuple, *arguments: Any, call: Any = None
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The rule of ``nm_attention``, as ``torch.library.register_vmap`` takes it; ``call`` stands for the operator."""
    size = info.batch_size
    tensors = _fold(arguments[:3], in_dims[:3], size)
    mask = _fold_mask(arguments[3], in_dims[3], size, arguments[0], in_dims[0])
    _refuse_seeds(in_dims[4])
    outputs = (call or torch.ops.dynattn.nm_attention)(*tensors, mask, *arguments[4:])
    return _unfold(outputs, size)


def backward(
    info: Any, in_dims: tuple, *arguments: Any, call: Any = None
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The rule of ``nm_attention_backward``. Gradients of what was not mapped are summed by the caller's own rules."""
    size, first = info.batch_size, _BACKWARD_GRADS
    tensors = _fold(arguments[: first + 3], in_dims[: first + 3], size)
    attn_mask, mask_dim = arguments[first + 3], in_dims[first + 3]
    mask = _fold_mask(attn_mask, mask_dim, size, arguments[first], in_dims[first])
    _refuse_seeds(in_dims[first + 4])
    mask_needs_grad = arguments[-2]
    if mask_needs_grad:  # each of the mapped calls has a gradient of its own
        mask = _fold_mask(attn_mask, mask_dim, size, arguments[first], in_dims[first], always=True)
    outputs = (call or torch.ops.dynattn.nm_attention_backward)(*tensors, mask, *arguments[first + 4 :])
    gradients, dims = _unfold(outputs, size)
    if mask_needs_grad:
        inner = attn_mask.shape if mask_dim is None else attn_mask.movedim(mask_dim, 0).shape[1:]
        gradients = (*gradients[:3], _sum_to(gradients[3], inner))
    return gradients, dims


def _fold(tensors: tuple, dims: tuple, size: int) -> list[Tensor]:
    """(mapped, batch, ...) seen as (mapped · batch, ...); what is not mapped is repeated."""
    front = (
        x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims, strict=True)
    )
    return [x.flatten(0, 1) for x in front]


def _fold_mask(
    mask: Tensor | None, dim: int | None, size: int, query: Tensor, query_dim: int | None, always: bool = False
) -> Tensor | None:
    if mask is None:
        return None
    inner = mask.dim() - (dim is not None)
    if dim is None and not always and (inner < 4 or mask.shape[0] == 1):
        return mask  # broadcasts over the folded batch as it did over the batch
    batch = query.shape[0] if query_dim is None else query.movedim(query_dim, 0).shape[1]
    front = mask.unsqueeze(0).expand(size, *mask.shape) if dim is None else mask.movedim(dim, 0)
    front = front.reshape(size, *(1,) * (4 - inner), *front.shape[1:])
    return front.expand(size, batch, *front.shape[2:]).flatten(0, 1)


def _sum_to(gradient: Tensor, shape: torch.Size) -> Tensor:
    """A mask's gradient, (mapped, batch, ...), summed to (mapped, *shape)."""
    wide = (gradient.shape[0], *(1,) * (gradient.dim() - 1 - len(shape)), *shape)
    return gradient.sum_to_size(wide).reshape(gradient.shape[0], *shape)


def _unfold(outputs: tuple[Tensor, ...], size: int) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Outputs with the mapped dimension in front again; what was not asked for is an empty vector and stays so."""
    asked = [x.dim() > 1 for x in outputs]
    unfolded = tuple(x.unflatten(0, (size, -1)) if has else x for x, has in zip(outputs, asked, strict=True))
    return unfolded, tuple(0 if has else None for has in asked)


def _refuse_seeds(dim: int | None) -> None:
    if dim is not None:
        raise ValueError(
            "attention: seed must not be mapped by vmap: one seed serves all of the mapped calls, which drop different "
            "weights; pass one seed, or call vmap with randomness='same'"
        )
