"""Operators on ``DTensor``: shards of batch and heads are computed where they are, as in PyTorch's own attention.

Tensors that are split along another dimension are gathered first. So are the inputs of methods in plain PyTorch, since
their choice may depend on the number of a head.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache, partial
from typing import Any

from torch import Tensor

_BATCH, _HEADS = 0, 1
_ALONG = ("query", "key", "value", "out", "logsumexp", "kept_mass", "kept", "allowed", "least", "last", "blocks",
          "grad_out", "grad_logsumexp")  # fmt: skip
_by_shards: list[Any] = []
_gathered: list[Any] = []


def split(schema: Any) -> None:
    """Let an operator compute each shard of batch and heads by itself.

    Args:
        schema: :class:`dynattn.ops.library.Schema`.
    """
    _by_shards.append(schema)


def gather(schema: Any) -> None:
    """Let an operator see whole tensors.

    Args:
        schema: :class:`dynattn.ops.library.Schema`.
    """
    _gathered.append(schema)


def is_sharded(x: Tensor) -> bool:
    """Whether ``x`` is a ``DTensor``, without importing the module that defines it."""
    if type(x) is Tensor:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def like(x: Tensor, zeros: Tensor) -> Tensor:
    """The gradient ``zeros`` as a ``DTensor`` where ``x`` is one. Autograd makes plain tensors of zeros for results
    whose gradient nobody gave."""
    if not is_sharded(x) or is_sharded(zeros):
        return zeros
    from torch.distributed.tensor import DTensor, Replicate

    mesh = x.device_mesh  # pyright: ignore[reportAttributeAccessIssue]
    return DTensor.from_local(zeros, mesh, [Replicate()] * mesh.ndim, run_check=False)


@cache
def register() -> None:
    """Tell ``DTensor`` how the operators may be split. Called when the first ``DTensor`` comes."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.experimental import register_sharding

    known = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    for schema, ways in (*((x, _shards) for x in _by_shards), *((x, _whole) for x in _gathered)):
        register_sharding(schema.operator)(partial(ways, schema))
        # A placement is remembered by these arguments besides the tensors, since it depends on them.
        first = next(i for i, name in enumerate(schema.Arguments._fields) if name not in schema.tensors)
        known[schema.operator] = replace(known[schema.operator], static_argnum=first)


def _whole(schema: Any, *arguments: Any) -> list[tuple[list, list]]:
    from torch.distributed.tensor import Replicate

    call = schema.Arguments(*arguments)
    inputs = [Replicate() if name in schema.tensors and x is not None else None for name, x in call._asdict().items()]
    return [([Replicate() for _ in schema.Results._fields], inputs)]


def _shards(schema: Any, *arguments: Any) -> list[tuple[list, list]]:
    call = schema.Arguments(*arguments)
    ways = _whole(schema, *arguments)
    if getattr(call, "seed", None) is not None:  # dropout draws by the number of the sample and of the head
        return ways
    ways.append(_along(schema, call, _BATCH))
    if call.key.shape[_HEADS] % call.key.mesh.size() == 0:  # then query heads stay with the key head that they share
        ways.append(_along(schema, call, _HEADS))
    return ways


def _along(schema: Any, call: Any, dim: int) -> tuple[list, list]:
    """The placements of results and arguments when dimension ``dim`` is split."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    mask = getattr(call, "attn_mask", None)
    mask_dim = -1 if mask is None else mask.ndim - 4 + dim
    splits_mask = mask is not None and mask_dim >= 0 and mask.shape[mask_dim] > 1
    arguments, results = [], []
    for name, x in call._asdict().items():
        if name not in schema.tensors or x is None:
            arguments.append(None)
        elif name == "attn_mask":
            arguments.append(Shard(mask_dim) if splits_mask else Replicate())
        else:
            arguments.append(Shard(dim))
    for name in schema.Results._fields:
        if name == "attn_mask" and call.mask_needs_grad:
            results.append(Shard(mask_dim) if splits_mask else Partial())
        elif name not in _ALONG or (name in ("kept_mass", "kept", "allowed") and not call.aux):
            results.append(Replicate())  # a result without elements
        else:
            results.append(Shard(dim))
    return results, arguments
