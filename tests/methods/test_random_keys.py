import math

import pytest
import torch

import dynattn
from dynattn import Random, TopK
from dynattn.maths import dropout
from tests.methods.oracle import expected, inputs, padding


def word(seed: int, batch: int, head: int, position: int, key: int) -> int:
    """Philox2x32-10 in whole numbers of Python."""
    first, second, stream = key, position & 0xFFFFFFFF, dropout.stream(seed, batch, head)
    for _ in range(10):
        product = 0xD256D193 * first
        first, second = product >> 32 ^ stream ^ second, product & 0xFFFFFFFF
        stream = stream + 0x9E3779B9 & 0xFFFFFFFF
    return first


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("q_len", [9, 4])
def test_definition(seed: int, causal: bool, q_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynattn.reference.in_blocks._BLOCK_SCORES", 200)
    query, key, value = inputs(q_len, 9)
    mask = padding(9, 9, 6)
    heads = iter([(b, h) for b in range(2) for h in range(4)])

    def rule(s, offset: int) -> list[set[int]]:
        b, h = next(heads)
        chosen = []
        for i, row in enumerate(s):
            allowed = [j for j, score in enumerate(row) if score != -math.inf]
            drawn = sorted(allowed, key=lambda j: -word(seed, b, h, i + offset, j))
            chosen.append(set(drawn[: max(3, math.ceil(len(allowed) * 0.4))]))
        return chosen

    want = expected(rule, query, key, value, mask, causal).out
    out = dynattn.attention(query, key, value, Random(0.4, seed, 3), attn_mask=mask, causal=causal, scale=0.5)
    torch.testing.assert_close(out, want)


def test_keeps_as_many_as_top_k_and_is_no_better_than_its_share() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 64, 8)
    for floor in (0, 32):
        drawn, best = (
            dynattn.attention(query, key, value, method, causal=True, return_aux=True)[1]
            for method in (Random(0.25, floor=floor), TopK(ratio=0.25, floor=floor))
        )
        torch.testing.assert_close(drawn.density, best.density)
        assert bool((drawn.kept_mass[:, :, :32] > 0.999).all()) == (floor == 32)
    _, drawn = dynattn.attention(query, key, value, Random(0.25, floor=0), causal=True, return_aux=True)
    assert 0.2 < drawn.kept_mass[:, :, 16:].mean() < 0.35  # a quarter, more in the first rows


def test_a_query_keeps_the_same_whether_it_comes_alone_or_not() -> None:
    query, key, value = inputs()
    method = Random(0.5, floor=0)
    whole = dynattn.attention(query, key, value, method)
    torch.testing.assert_close(dynattn.attention(query[:, :, -1:], key, value, method), whole[:, :, -1:])
    other = dynattn.attention(query, key, value, Random(0.5, 1, 0))
    assert (other != whole).any(-1).float().mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1,), TypeError, "ratio must be a float"),
        ((0.5, -1), ValueError, "seed must be at least 0"),
        ((0.5, 1.0), TypeError, "seed must be an int"),
        ((0.5, 0, -1), ValueError, "floor must be between 0 and"),
    ],
)
def test_refusals(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"Random: {text}"):
        Random(*arguments)
