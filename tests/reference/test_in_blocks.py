"""The definition a block of queries at a time gives what it gives at once, wherever blocks begin."""

from __future__ import annotations

import pytest
import torch

from dynattn import NM, BlockTopK, TopK
from dynattn.maths import dropout
from dynattn.methods import PairMethod
from dynattn.reference import in_blocks, pairs

METHODS = [NM(1, 2), TopK(k=3), BlockTopK(0.5, 4)]
MASKS = [None, (2, 1, 1, 11), (9, 11), (2, 4, 9, 11)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("seed", [None, 3])
def test_blocks_give_what_the_whole_gives(
    method: PairMethod, mask: tuple[int, ...] | None, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_blocks, "_BLOCK_SCORES", 2 * 4 * 11 * 4)  # four queries, or one block of them
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 9, 5), (2, 2, 11, 5), (2, 2, 11, 3))
    query, key, value = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    bias = None if mask is None else torch.randn(mask, generator=generator, dtype=torch.float64)
    options = in_blocks.Options(method, True, 0.4, 0.3 if seed else 0.0)
    drawn = None if seed is None else torch.tensor(seed)
    drops = None if seed is None else dropout.factors(seed, 0.3, 2, 4, range(9), 11, query.device)
    want = pairs.forward(query, key, value, method, bias, True, 0.4, drops=drops)
    outputs = tuple(torch.full_like(x, 7) for x in want)  # 7: nothing may stay as it was
    in_blocks.forward(outputs, query, key, value, bias, drawn, options, aux=True)
    torch.testing.assert_close(outputs, tuple(want))

    d_out, d_logsumexp = torch.randn_like(want.out), torch.randn_like(want.logsumexp)
    exact = pairs.backward(d_out, d_logsumexp, query, key, value, method, bias, True, 0.4, drops=drops)
    d_mask = torch.empty(0, dtype=query.dtype) if bias is None else torch.full_like(bias, 7)
    gradients = (torch.full_like(query, 7), torch.full_like(key, 7), torch.full_like(value, 7), d_mask)
    in_blocks.backward(gradients, d_out, d_logsumexp, query, key, value, bias, drawn, options)
    torch.testing.assert_close(gradients[:3], exact[:3])
    if bias is not None:
        torch.testing.assert_close(d_mask, exact.scores.sum_to_size(bias.shape))
