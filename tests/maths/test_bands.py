"""Blocks of queries and their slices of keys together allow exactly the pairs of the window."""

from __future__ import annotations

import pytest
import torch

from dynattn.maths import bands as module
from dynattn.maths.bands import Bands


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (3, 0), (3, 2), (9, 5)])
@pytest.mark.parametrize(("q_len", "kv_len"), [(40, 40), (13, 40), (40, 13), (1, 30), (37, 37)])
def test_each_pair_once(
    q_len: int, kv_len: int, window: int, sinks: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 8)
    bands = Bands.of(window, sinks, q_len, kv_len, causal)
    numbers = torch.arange(1.0, kv_len + 1).view(1, 1, kv_len, 1)
    keys = bands.keys(numbers).squeeze(-1)  # [blocks, 1, keys], 0 where a slice reaches past the ends
    mask = bands.mask(1, None, torch.device("cpu"))
    rows = bands.joined(torch.zeros(bands.blocks, 1, bands.block, 1) + torch.arange(bands.block).view(1, 1, -1, 1))
    assert rows.shape == (1, 1, q_len, 1)
    seen = torch.zeros(bands.blocks * bands.block, kv_len + 1, dtype=torch.int64)
    for block in range(bands.blocks):
        for row in range(bands.block):
            for key in keys[block, 0, mask[block, 0, row]].tolist():
                seen[block * bands.block + row, int(key)] += 1
    i, j = torch.arange(q_len).unsqueeze(1) + kv_len - q_len, torch.arange(kv_len)
    want = ((i - j).abs() < window) | (j < sinks)
    want = want & (j <= i) if causal else want
    assert torch.equal(seen[:q_len, 1:], want.long())
    assert not seen[:, 0].any()
    assert not seen[q_len:].any()  # queries that only fill the last block up


def test_short_keys_are_one_block_and_queries_come_back_in_order() -> None:
    one = Bands.of(9, 4, 5, 12, False)
    assert (one.blocks, one.size, one.before) == (1, 12, 0)
    many = Bands.of(4, 1, 300, 1000, True)
    assert many.blocks == 3
    x = torch.randn(2, 3, 300, 4)
    assert torch.equal(many.joined(many.queries(x)), x)


@pytest.mark.parametrize("shape", [(20,), (20, 20), (2, 1, 1, 20), (1, 3, 20, 20)])
def test_masks_are_cut_like_the_keys(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 8)
    bands = Bands.of(3, 2, 20, 20, False)
    assert bands.blocks > 1
    generator = torch.Generator().manual_seed(len(shape))
    allowed = torch.rand(shape, generator=generator) < 0.6
    own, cut = bands.mask(2, None, torch.device("cpu")), bands.mask(2, allowed, torch.device("cpu"))
    full = allowed.view((1,) * (4 - len(shape)) + shape).expand(2, 3, 20, 20)
    keys = bands.keys(torch.arange(20.0).view(1, 1, 20, 1).expand(2, 1, 20, 1)).squeeze(-1).long()
    for part in range(len(cut)):
        b, block = divmod(part, bands.blocks)
        for row in range(min(8, 20 - 8 * block)):
            for h in range(cut.shape[1]):
                want = own[part, 0, row] & full[b, h, 8 * block + row][keys[part, 0]]
                assert torch.equal(cut[part, h, row], want)
