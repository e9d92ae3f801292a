"""``DTensor``: shards of batch and heads are computed where they lie; two processes, compared with one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn

import dynattn
from dynattn.methods import parse
from dynattn.ops import sharding
from tests.methods.every import NAMES

WORLD = 2
HEADS, KV_HEADS = 8, 4
MANY = "perhead(4*nm-1-2_2*window-4_2*topk-3)"
WHOLE = ("nm-1-2", "topk-3", "blocktopk-0.5-b8", "window-5-s2", "efficient")
METHODS = (*(name for name in NAMES if not name.startswith("perhead")), MANY)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, HEADS, 19, 8), (4, KV_HEADS, 19, 8), (4, KV_HEADS, 19, 8), (4, 1, 1, 19))
    query, key, value, mask = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value, mask


def alike(rank: int, mesh: Any) -> None:
    """Outputs, certificates and gradients: some methods sharded in every way, each of the others in one."""
    for number, method in enumerate(METHODS):
        mixes = method.startswith(("efficient", "scatterbrain"))
        ways = (Shard(0), Shard(1), Shard(2), Replicate())
        if method == MANY:
            ways = ways[-1:]  # it takes heads apart itself
        elif method not in WHOLE:
            ways = ways[number % len(ways) :][:1]
        for placement in ways:
            leaves: Any = cast(Any, [x.requires_grad_() for x in inputs()])
            query, key, value, bias = (
                distribute_tensor(x.detach(), mesh, [placement if x.shape[placement.dim] > 1 else Replicate()])
                if isinstance(placement, Shard) else distribute_tensor(x.detach(), mesh, [placement])
                for x in leaves
            )  # fmt: skip
            given: Any = cast(Any, [x.requires_grad_() for x in (query, key, value, bias)])
            for mask, its in ((None, None), (given[3], leaves[3])):
                out: Any = dynattn.attention(*given[:3], method=parse(method), attn_mask=mask, causal=True)
                want = dynattn.attention(*leaves[:3], method=parse(method), attn_mask=its, causal=True)
                assert isinstance(out, DTensor)
                torch.testing.assert_close(out.full_tensor(), want, rtol=1e-5, atol=1e-5, msg=f"{method} {placement}")
                count = 3 if mask is None else 4
                got = torch.autograd.grad(out.square().sum(), given[:count])
                wanted = torch.autograd.grad(want.square().sum(), leaves[:count])
                for a, b in zip(got, wanted, strict=True):
                    torch.testing.assert_close(a.full_tensor(), b, rtol=1e-4, atol=1e-4, msg=f"{method} {placement}")
            if not mixes:
                _, aux = cast(Any, dynattn.attention)(*given[:3], method=parse(method), return_aux=True)
                _, want_aux = dynattn.attention(*leaves[:3], method=parse(method), return_aux=True)
                for a, b in zip(aux, want_aux, strict=True):
                    torch.testing.assert_close(a.full_tensor(), b, rtol=1e-5, atol=1e-5)


def in_place(rank: int, mesh: Any) -> None:
    """Kernels gather nothing: their results are sharded as their inputs are."""
    for method in ("nm-1-2", "topk-3", "blocktopk-0.5-b8", "window-4"):
        for placement in (Shard(0), Shard(1)):
            tensors: Any = cast(Any, [distribute_tensor(x, mesh, [placement]) for x in inputs()[:3]])
            out: Any = dynattn.attention(*tensors, method=parse(method))
            assert out.placements == (placement,)


def refusals(rank: int, mesh: Any) -> None:
    query, key, value, bias = inputs()
    sharded = distribute_tensor(query, mesh, [Shard(1)])
    with pytest.raises(TypeError, match="must all be DTensor, or none of them: got DTensor, Tensor, Tensor"):
        dynattn.attention(sharded, key, value)
    with pytest.raises(TypeError, match="must all be DTensor, or none of them: got Tensor, DTensor, Tensor"):
        dynattn.attention(query, distribute_tensor(key, mesh, [Shard(1)]), value)
    with pytest.raises(TypeError, match="or none of them: got DTensor, DTensor, DTensor, Tensor"):
        dynattn.attention(sharded, sharded, sharded, attn_mask=bias)
    with pytest.raises(NotImplementedError, match="dropout_p must be 0 for DTensor"):
        dynattn.attention(sharded, sharded, sharded, dropout_p=0.5)


def _run(rank: int, port: int, checks: Sequence[Callable[[int, Any], None]]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    for check in checks:
        check(rank, mesh)
    dist.destroy_process_group()


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
def test_two_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_run, args=(port, (alike, in_place, refusals)), nprocs=WORLD)


def test_a_parameter_is_no_shard() -> None:
    assert not sharding.is_sharded(nn.Parameter(torch.zeros(1)))
    x = nn.Parameter(torch.randn(1, 2, 5, 8))
    assert dynattn.attention(x, x, x).shape == x.shape
