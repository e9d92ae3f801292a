"""N:M weights in packed form: the round trip, and the bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dynattn.ops.nm_weights import pack_nm
from dynattn.sparsity import NMWeights


@pytest.mark.parametrize("inputs", [0, 1, 2, 3, 31, 32, 33, 63, 64, 65, 130])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 4)])
def test_round_trip(n: int, m: int, inputs: int) -> None:
    draw = torch.Generator().manual_seed(inputs)
    weight = torch.randn(7, inputs, generator=draw)
    if inputs:
        weight *= NMWeights(n, m).masks({"": weight})[""]
        weight[3] *= (torch.arange(inputs) % 5 > 1).float()  # groups with fewer weights
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        packed = pack_nm(weight.to(dtype), n, m)
        assert packed.values.dtype == dtype
        assert torch.equal(packed.unpack(), weight.to(dtype))


def test_places_by_hand() -> None:
    weight = torch.zeros(1, 64)
    weight[0, 0], weight[0, 3] = 5.0, 6.0  # group 0: places 0 and 3
    weight[0, 61], weight[0, 62] = 7.0, 8.0  # group 15: places 1 and 2
    packed = pack_nm(weight, 2, 4)
    first, second = packed.values.view(2, 16)
    assert (first[0], first[15], second[0], second[15]) == (5, 7, 6, 8)
    words = [int(word) % (1 << 32) for word in packed.places.flatten()]  # low bits of all groups below high ones
    assert [word & 0x80018001 for word in words] == [0x00008000, 0x80010001]


def test_nan_is_a_weight() -> None:
    weight = torch.tensor([[0.0, math.nan, 1.0, 0.0]])
    torch.testing.assert_close(pack_nm(weight, 1, 2).unpack(), weight, equal_nan=True)


@pytest.mark.parametrize(("n", "m", "share"), [(1, 2, 33 / 64), (2, 4, 68 / 128), (1, 4, 34 / 128)])
def test_bytes(n: int, m: int, share: float) -> None:
    weight = NMWeights(n, m).masks({"": torch.randn(8, 576)})[""].float()
    assert pack_nm(weight, n, m).bytes / weight.nbytes == pytest.approx(share)


def test_refusals() -> None:
    weight = torch.ones(2, 8)
    with pytest.raises(
        ValueError, match=r"pack_nm: at most 2 of 4 inputs in a row may have a weight: one group has 4; mask"
    ):
        pack_nm(weight, 2, 4)
    for n, m in ((2, 2), (0, 2), (1, 3), (4, 8), (1, 1)):
        with pytest.raises(ValueError, match=rf"pack_nm: n:m must be 1:2, 1:4, 2:4 or 3:4: got {n}:{m}; use"):
            pack_nm(weight, n, m)
    with pytest.raises(ValueError, match=r"pack_nm: weight must be \(out, in\): got \(8,\); pack"):
        pack_nm(weight[0], 1, 2)
    for bad, kind in ((weight.int(), "torch.int32"), ([[1.0]], "list")):
        with pytest.raises(TypeError, match=rf"pack_nm: weight must be a floating-point tensor: got {kind}; convert"):
            pack_nm(bad, 1, 2)  # pyright: ignore[reportArgumentType]


def test_tensors_that_do_not_belong_together_are_refused() -> None:
    packed = pack_nm(torch.zeros(3, 70), 2, 4)
    changes = (
        {"inputs": 700}, {"values": packed.values[:2]}, {"values": packed.values[:, :16]}, {"values": packed.values[0]},
        {"places": packed.places[:, :1]}, {"places": packed.places[:2]}, {"m": 2}, {"n": 1},
    )  # fmt: skip
    for change in changes:
        with pytest.raises(ValueError, match=r"PackedNM: values and places must be \(out, "):
            replace(packed, **change)
    with pytest.raises(ValueError, match=r"PackedNM: places must be int32 beside the values: got torch.int64"):
        replace(packed, places=packed.places.long())
