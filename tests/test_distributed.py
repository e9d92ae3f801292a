"""Attention over parts of a sequence is that over the whole: gloo on 2 and 4 processes, one spawn for all cases."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

import dynattn
import dynattn.distributed
from dynattn import NM
from dynattn.methods import parse

attend: Any = dynattn.distributed.attention
whole_attention: Any = dynattn.attention
EVEN, UNEVEN, NONE = (16, 16, 16, 16), (13, 22, 1, 28), (20, 0, 30, 14)
METHODS = (
    "dense", "nm-1-2", "nm-2-4-x8", "nm-1-4-w5-s2", "topk-5", "mass-0.8", "threshold-0.05", "window-6-s2", "random-0.5",
    "blockbound-0.7-b8", "dsa-0.5-v8",
    "clustered-blocktopk-0.5-b8-w0-s0", "clustered-blockmass-0.5-b4-w0-s0", "clustered-blocktopk-0.5-b8-w0-s0&nm-1-2",
)  # fmt: skip
BOTH = ("dense", "nm-1-2", "nm-2-4-x8", "topk-5", "clustered-blocktopk-0.5-b8-w0-s0")
# of which one key of a block, unlike the others, is all that the last query of a part sees
CUT = {"keys": (30, 10, 5, 20), "causal": True, "alike": True}  # fmt: skip
CASES: list[dict[str, Any]] = [
    *({"method": name, "causal": number % 2 == 0} for number, name in enumerate(METHODS)),
    *({"method": name, "causal": number % 2 == 1} for number, name in enumerate(METHODS) if name in BOTH),
    *({"method": "nm-1-2", "causal": causal, "lengths": UNEVEN} for causal in (True, False)),
    *({"method": "nm-1-2", "causal": causal, "lengths": NONE} for causal in (True, False)),
    {"method": "nm-1-4-w5-s2", "lengths": UNEVEN},
    {"method": "nm-1-4-w5-s2", "lengths": UNEVEN, "causal": True, "keys": (30, 10, 11, 20)},
    {"method": "nm-1-2", "keys": (30, 10, 11, 20)},
    {"method": "nm-1-2", "causal": True, "keys": (3, 2, 4, 1)},
    {"method": "blocktopk-0.5-b8", "causal": True},
    {"method": "blocktopk-0.5-b8"},
    *({"method": f"blocktopk-0.3-b8-{by}w0-s0", **CUT} for by in ("", "similar-")),
    {"method": "blocktopk-0.3-b4-similar-w0-s0", **CUT},
    {"method": "blocktopk-0.3-b8-similar-w0-s0&nm-1-2", **CUT},
    {"method": "blockskip-0.5", "causal": True},
    {"method": "blockskip-2.0-in(blocktopk-0.3-b16-similar-w0-s0-f0)", **CUT},
    {"method": "clustered-blocktopk-0.5-b8-w0-s0", **CUT},
    {"method": "clustered-blocktopk-0.5-b8-w0-s0", "mask": "rows", "causal": True},
    {"method": "clustered-blocktopk-0.5-b8-w0-s0", "keys": (3, 2, 4, 1), "causal": True},
    {"method": "blocktopk-0.5-b8-similar-w0-s0", "mask": "padding", **CUT},
    {"method": "blocktopk-0.5-b8-similar-w0-s0", "keys": (3, 2, 4, 1), "causal": True},
    {"method": "nm-1-2", "mask": "padding"},
    {"method": "nm-1-4-w5-s2", "mask": "rows", "causal": True, "lengths": UNEVEN},
    {"method": "nm-1-4-w5-s2", "mask": "rows", "lengths": UNEVEN},
]  # fmt: skip


def whole(case: dict[str, Any], processes: int) -> tuple[list[Tensor], dict[str, Any], list[int], list[int]]:
    """The whole sequence, options, and the lengths of the parts of queries and keys."""
    four = case.get("lengths", EVEN)
    lengths, keys = (
        list(parts) if processes == 4 else [sum(parts[:2]), sum(parts[2:])] for parts in (four, case.get("keys", four))
    )
    generator = torch.Generator().manual_seed(3)
    sizes = ((2, 4, sum(lengths), 8), (2, 2, sum(keys), 8), (2, 2, sum(keys), 6))
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    if case.get("alike"):  # the queries
        tensors[0] = 0.3 * tensors[0] + 1
    options: dict[str, Any] = {"causal": case.get("causal", False)}
    if case.get("mask") == "padding":
        options["attn_mask"] = (torch.arange(sum(keys)) > 5).view(1, 1, 1, -1)
    elif case.get("mask") == "rows":
        options["attn_mask"] = torch.randn(1, 4, sum(lengths), sum(keys), generator=generator).double()
    return tensors, options, lengths, keys


def _agree(rank: int, processes: int, group: Any, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        tensors, options, lengths, keys = whole(case, processes)
        inputs = [x.requires_grad_() for x in tensors]
        expected = whole_attention(*inputs, parse(case["method"]), **options)
        gradients = torch.autograd.grad(expected.sin().sum(), inputs)
        cuts = (lengths, keys, keys)
        parts = [x.detach().split(of, dim=2)[rank].requires_grad_() for x, of in zip(tensors, cuts, strict=True)]
        mask = options.pop("attn_mask", None)
        if case.get("mask") == "rows":
            mask = mask.split(lengths, dim=2)[rank]
        out = attend(*parts, parse(case["method"]), attn_mask=mask, group=group, **options)
        told = partial("{}: {}".format, case)
        torch.testing.assert_close(out, expected.split(lengths, dim=2)[rank], msg=told)
        found = torch.autograd.grad(out.sin().sum(), parts)
        for one, all_of_them, of in zip(found, gradients, cuts, strict=True):
            torch.testing.assert_close(one, all_of_them.split(of, dim=2)[rank], msg=told)


def _dropout(rank: int) -> None:
    """Each process drops as a call with a seed of its own does, in the backward and for the certificate too."""
    tensors, _, lengths, _ = whole({}, 4)
    parts = [x.split(lengths, dim=2)[rank].requires_grad_() for x in tensors]
    for method, causal in ((NM(1, 2), True), (NM(1, 1), False)):
        end = sum(lengths[: rank + 1]) if causal else sum(lengths)
        keys = [x[:, :, :end].clone().requires_grad_() for x in tensors[1:]]
        options: dict[str, Any] = {"causal": causal, "dropout_p": 0.4, "return_aux": True}
        expected, certificate = whole_attention(parts[0], *keys, method, **options, seed=7 ^ rank << 32)
        for seed in (7, torch.tensor([7])):
            out, aux = attend(*parts, method, **options, seed=seed)
            torch.testing.assert_close((out, *aux), (expected, *certificate))
        of_keys = [torch.zeros_like(x) for x in tensors[1:]]
        of_query, *found = torch.autograd.grad(expected.sin().sum(), [parts[0], *keys])
        for one, own in zip(of_keys, found, strict=True):
            one[:, :, :end] = own
            distributed.all_reduce(one)
        given = torch.autograd.grad(out.sin().sum(), parts)
        torch.testing.assert_close(given, (of_query, *(x.split(lengths, dim=2)[rank] for x in of_keys)))
    torch.manual_seed(0)  # the same on all processes
    drawn = attend(*(torch.ones(1, 1, 16, 8) for _ in range(3)), NM(1, 1), dropout_p=0.5)
    others = [torch.empty_like(drawn) for _ in range(4)]
    distributed.all_gather(others, drawn)
    assert not any(torch.equal(drawn, other) for i, other in enumerate(others) if i != rank)


def _certificate_and_refusals(rank: int) -> None:
    tensors, _, lengths, _ = whole({}, 4)
    parts = [x.split(lengths, dim=2)[rank] for x in tensors]
    for method in (NM(1, 2), parse("clustered-blocktopk-0.5-b8-w0-s0")):
        _, aux = attend(*parts, method, causal=True, return_aux=True)
        _, expected = whole_attention(*tensors, method, causal=True, return_aux=True)
        torch.testing.assert_close(aux.logsumexp, expected.logsumexp.split(lengths, dim=2)[rank])
        torch.testing.assert_close(aux.kept_mass, expected.kept_mass.split(lengths, dim=2)[rank])
        seen = torch.arange(64).add(1).double().split(lengths)[rank]
        allowed, shares = seen.sum(), [torch.empty_like(aux.density) for _ in lengths]
        counts = [torch.empty_like(allowed) for _ in lengths]
        distributed.all_gather(shares, aux.density)
        distributed.all_gather(counts, allowed)
        kept = torch.stack([share * count for share, count in zip(shares, counts, strict=True)]).sum(0)
        torch.testing.assert_close((kept / torch.stack(counts).sum()).float(), expected.density)
    uneven = whole({"lengths": UNEVEN}, 4)
    others = [x.split(uneven[2], dim=2)[rank] for x in uneven[0]]
    for kind, text, given, method in (
        (ValueError, "must begin at a multiple of 8 queries, for which blocktopk", others, "blocktopk-0.5-b8"),
        (TypeError, "method must keep pairs: got 'scatterbrain", parts, "scatterbrain-f8-b4-r1"),
        (
            NotImplementedError,
            "return_aux needs causal=True for a method that looks",
            parts,
            "window-6-s2",
        ),
    ):
        with pytest.raises(kind, match=text):
            attend(*given, parse(method), return_aux=kind is NotImplementedError)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    sharded = [DTensor.from_local(x, init_device_mesh("cpu", (4,)), [Shard(2)]) for x in parts]
    with pytest.raises(TypeError, match=r"query must be this process's part .*: got DTensor; pass x.to_local\(\)"):
        attend(*sharded)
    out = whole_attention(*sharded, NM(1, 2), causal=True).full_tensor()
    torch.testing.assert_close(out, whole_attention(*tensors, NM(1, 2), causal=True))


def _calls_that_do_not_fit(rank: int) -> None:
    """All processes raise, the one at fault and those that would wait for it."""
    query, key, value = (torch.randn(1, 2, 4, 8) for _ in range(3))
    others = rank != 1
    cases: tuple[tuple[Any, str, dict[str, Any]], ...] = (
        ((query, key, value if others else value[:, :, :3]), "key and value must have the same heads and length", {}),
        ((query, key, value if others else value.double()), "must share one dtype", {}),
        ((query, key, value if others else None), "must be tensors: got Tensor, Tensor, NoneType", {}),
        ((query, key, value if others else value.to("meta")), "value must hold numbers: it is on the meta device", {}),
        ((query, key, value), "scale must be finite", {"scale": 1.0 if others else torch.inf}),
        ((query, key, value), "seed must be an int of 64 bits", {"dropout_p": 0.1, "seed": 1 if others else 0.5}),
    )
    for tensors, text, options in cases:
        kind: Any = RuntimeError if others else (TypeError, ValueError)
        with pytest.raises(kind, match="process 1 of the group refused its own" if others else text):
            attend(*tensors, NM(1, 2), **options)
    wide = [query, key, value] if others else [torch.randn(1, 4, 4, 8), key, value]
    with pytest.raises(ValueError, match=r"heads must be the same on all processes: got \[2, 4, 2, 2\]"):
        attend(*wide, NM(1, 2))
    with pytest.raises(ValueError, match="options must be the same on all processes: got others"):
        attend(query, key, value, NM(1, 2) if others else NM(2, 4))
    if rank < 2:
        with pytest.raises(ValueError, match="this process must be of the group"):
            attend(query, key, value, group=distributed.GroupMember.NON_GROUP_MEMBER)


def _process(rank: int, folder: str) -> None:
    """All four, then the last two as a group of their own with every third case."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    last_two = distributed.new_group([2, 3])
    try:
        _agree(rank, 4, None, CASES)
        _certificate_and_refusals(rank)
        _dropout(rank)
        _calls_that_do_not_fit(rank)
        if rank >= 2:
            _agree(rank - 2, 2, last_two, CASES[::3])
    finally:
        distributed.destroy_process_group()


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
def test_parts_are_the_whole(tmp_path: Path) -> None:
    spawn(_process, (str(tmp_path),), nprocs=4)


def test_without_a_process_group_it_is_an_error() -> None:
    x = torch.randn(1, 2, 4, 8)
    with pytest.raises(RuntimeError, match=r"must be initialised: it is not; call .*, or dynattn.attention"):
        attend(x, x, x)
