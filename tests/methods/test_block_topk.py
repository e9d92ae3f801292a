import math

import pytest
import torch

import dynattn
from dynattn import BlockTopK
from dynattn.methods import Rows
from tests.methods.oracle import Scores, agrees, inputs


def rule(size: int, numerator: int, denominator: int):
    def choose(s: Scores, _: int) -> list[set[int]]:
        kv_len = len(s[0])
        blocks = [range(j, min(j + size, kv_len)) for j in range(0, kv_len, size)]
        chosen: list[set[int]] = []
        for first in range(0, len(s), size):
            together = s[first : first + size]
            means = {}
            for number, block in enumerate(blocks):
                allowed = [row[j] for row in together for j in block if row[j] != -math.inf]
                if allowed:
                    means[number] = sum(allowed) / len(allowed)
            count = math.ceil(len(means) * numerator / denominator)
            best = sorted(means, key=lambda number: -means[number])[:count]  # stable: the lower first
            chosen += [{j for number in best for j in blocks[number]} for _ in together]
        return chosen

    return choose


@pytest.mark.parametrize(("ratio", "exact"), [(0.25, (1, 4)), (0.5, (1, 2)), (0.000001, (1, 10**6)), (1.0, (1, 1))])
@pytest.mark.parametrize("block", [1, 2, 4, 32])
def test_definition(ratio: float, exact: tuple[int, int], block: int) -> None:
    agrees(BlockTopK(ratio, block), rule(block, *exact))


def test_without_masks_the_score_is_the_product_of_the_pooled_vectors() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 3, 32, 8, dtype=torch.float64)
    s = 0.7 * query @ key.mT
    pooled = [x.unflatten(2, (4, 8)).mean(3) for x in (query, key)]
    means = 0.7 * pooled[0] @ pooled[1].mT
    kept = BlockTopK(0.25, 8).choose(s, Rows(query, key, 0, 0.7))
    best = means.argmax(-1)
    for h in range(3):
        for i in range(32):
            assert kept[0, h, i].nonzero().flatten().tolist() == [8 * int(best[0, h, i // 8]) + j for j in range(8)]


def test_nan_reaches_the_output() -> None:
    query, key, value = inputs()
    key[0, 0, 7] = math.nan
    out = dynattn.attention(query, key, value, BlockTopK(0.1, 4))
    assert out[0, :2].isnan().all()
    assert out[0, 2:].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, 16), TypeError, "ratio must be a float"),
        ((0.5, 0), ValueError, "block must be between 1 and 1024"),
        ((0.5, 1025), ValueError, "block must be between 1 and 1024"),
        ((0.5, 16.0), TypeError, "block must be an int"),
    ],
)
def test_refusals(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"BlockTopK: {text}"):
        BlockTopK(*arguments)
