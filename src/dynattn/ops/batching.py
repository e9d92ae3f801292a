"""``torch.func.vmap`` over an operator: the mapped dimension is folded into the batch, and unfolded afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dynattn.ops.library import Schema


def rule(
    schema: Schema, info: Any, in_dims: tuple, *arguments: Any, call: Any = None
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The rule by which ``vmap`` maps an operator or its backward; ``torch.library.register_vmap`` takes it.

    The caller sums the gradients of arguments that were not mapped.

    Args:
        schema: the operator; its tensors have the batch first, except for ``attn_mask`` and ``seed``.
        info, in_dims, arguments: as PyTorch gives them to a rule.
        call: what to call in place of the operator.
    """
    given, dims, size = schema.Arguments(*arguments), schema.Arguments(*in_dims), info.batch_size
    _refuse_seeds(dims.seed)
    mask_needs_grad = getattr(given, "mask_needs_grad", False)
    names = schema.tensors - {"attn_mask", "seed"}
    folded = {name: _fold(getattr(given, name), getattr(dims, name), size) for name in names}
    # where the mask's gradient is asked for, each of the mapped calls has a mask of its own
    mask = _fold_mask(given.attn_mask, dims.attn_mask, size, given.query, dims.query, always=mask_needs_grad)
    outputs, out_dims = _unfold((call or schema.operator)(*given._replace(**folded, attn_mask=mask)), size)
    if not mask_needs_grad:
        return outputs, out_dims
    results = schema.Results(*outputs)
    dim = dims.attn_mask
    inner = given.attn_mask.shape if dim is None else given.attn_mask.movedim(dim, 0).shape[1:]
    return tuple(results._replace(attn_mask=_sum_to(results.attn_mask, inner))), out_dims


def _fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """A tensor (mapped, batch, ...) as (mapped · batch, ...). One that is not mapped is repeated."""
    front = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return front.flatten(0, 1)


def _fold_mask(
    mask: Tensor | None, dim: int | None, size: int, query: Tensor, query_dim: int | None, always: bool = False
) -> Tensor | None:
    if mask is None:
        return None
    inner = mask.dim() - (dim is not None)
    if dim is None and not always and (inner < 4 or mask.shape[0] == 1):
        return mask  # it broadcasts over the folded batch as it did over the batch
    batch = query.shape[0] if query_dim is None else query.movedim(query_dim, 0).shape[1]
    front = mask.unsqueeze(0).expand(size, *mask.shape) if dim is None else mask.movedim(dim, 0)
    front = front.reshape(size, *(1,) * (4 - inner), *front.shape[1:])
    return front.expand(size, batch, *front.shape[2:]).flatten(0, 1)


def _sum_to(gradient: Tensor, shape: torch.Size) -> Tensor:
    """A mask's gradient, (mapped, batch, ...), summed to (mapped, *shape)."""
    wide = (gradient.shape[0], *(1,) * (gradient.dim() - 1 - len(shape)), *shape)
    return gradient.sum_to_size(wide).reshape(gradient.shape[0], *shape)


def _unfold(outputs: tuple[Tensor, ...], size: int) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The outputs with the mapped dimension in front again. An output that was not asked for is an empty vector, and
    stays one."""
    asked = [x.dim() > 1 for x in outputs]
    unfolded = tuple(x.unflatten(0, (size, -1)) if has else x for x, has in zip(outputs, asked, strict=True))
    return unfolded, tuple(0 if has else None for has in asked)


def _refuse_seeds(dim: int | None) -> None:
    if dim is not None:
        raise ValueError(
            "attention: seed must not be mapped by vmap: one seed serves all of the mapped calls, which drop different "
            "weights; pass one seed, or call vmap with randomness='same'"
        )
