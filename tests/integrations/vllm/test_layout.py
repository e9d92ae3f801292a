"""Where keys and values lie in the cache of vLLM."""

from __future__ import annotations

import torch

from dynattn.integrations.vllm import layout


def test_tokens_lie_in_their_slots() -> None:
    cache = torch.full((3, 2, 32, 32), torch.nan)
    key, value = torch.randn(6, 2, 16), torch.randn(6, 2, 16)  # two are padding
    keys, values = pools = layout.pools(cache)
    layout.write(pools, key, value, torch.tensor([65, 0, -1, 31]))
    assert keys.shape == values.shape == (3, 32, 2, 16)
    for pool, new in ((keys, key), (values, value)):
        assert pool.data_ptr() - cache.data_ptr() in (0, 4 * 32 * 16)
        assert torch.equal(pool[[2, 0, 0], [1, 0, 31]], new[[0, 1, 3]])
        assert int(pool.isfinite().sum()) == 3 * 32


def test_tokens_behind_the_last_slot_are_padding() -> None:
    keys, values = pools = layout.pools(torch.full((1, 2, 32, 32), torch.nan))
    key, value = torch.randn(3, 2, 16), torch.randn(3, 2, 16)
    layout.write(pools, key, value, torch.tensor([4, 2]))
    for pool, new in ((keys, key), (values, value)):
        assert torch.equal(pool[0, [4, 2]], new[:2])
        assert int(pool.isfinite().sum()) == 2 * 32
