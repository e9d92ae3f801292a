"""The blocks that the kernels choose, against the methods' own definition, on inputs whose sums are exact."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dynattn.kernels import cpu
from dynattn.kernels.pattern import BlockRule
from dynattn.methods import PairMethod, Rows, parse

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels are not built")

LENGTHS = [(1, 70), (65, 65), (130, 200), (70, 9)]
NAMES = [
    "blocktopk-0.25-b64",
    "blocktopk-0.3-b8-similar-w0-s0-f0",
    "blockmass-0.9-b32",
    "blockmass-0.5-b24-similar-w8-s0",
]
MASKS = ["none", "padding", "by head", "pairs", "bias", "lowest", "alone"]


def masked(kind: str, q_len: int, kv_len: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(1)
    some = torch.rand(2, 4, q_len, kv_len, generator=generator)
    numbers = torch.randint(-8, 9, (4, q_len, kv_len), generator=generator) / 4
    return {
        "none": None,
        "padding": some[:, :1, :1] < 0.7,
        "by head": some[:, :, :1] < 0.7,
        "pairs": some[:, :1] < 0.8,
        "bias": numbers.masked_fill(some[0] < 0.4, -math.inf).bfloat16(),
        "lowest": torch.zeros(2, 1, 1, kv_len).masked_fill(some[:, :1, :1] < 0.5, torch.finfo(torch.float32).min),
        "alone": some[:, :1] < 0.02,
    }[kind]


def inputs(q_len: int, kv_len: int, dtype: torch.dtype, head_dim: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    query = torch.randint(-8, 9, (2, 4, q_len, head_dim), generator=generator) / 4
    key = torch.randint(-8, 9, (2, 2, kv_len, head_dim), generator=generator) / 4
    alike = torch.rand(2, 2, kv_len // 8 + 1, 1, generator=generator).lt(0.5).repeat_interleave(8, 2)[:, :, :kv_len]
    return (query + 2).to(dtype), (key + 3 * alike).to(dtype)


def chosen(query: Tensor, key: Tensor, mask: Tensor | None, method: PairMethod, causal: bool, isa: str) -> Tensor:
    """The pairs of the kept blocks."""
    rule = method.block_rule()
    assert isinstance(rule, BlockRule)
    (batch, heads, q_len, _), kv_len = query.shape, key.shape[2]
    blocks = torch.full((batch, heads, -(-q_len // rule.block), -(-kv_len // rule.block)), 7, dtype=torch.uint8)
    mask = None if mask is None else mask.expand(batch, heads, q_len, kv_len)
    cpu.choose_blocks(query, key, mask, blocks.view(torch.bool), rule, causal, 0.25, isa)
    assert blocks.max() <= 1
    pairs = blocks.bool().repeat_interleave(rule.block, 2).repeat_interleave(rule.block, 3)
    return pairs[:, :, :q_len, :kv_len]


def defined(query: Tensor, key: Tensor, mask: Tensor | None, method: PairMethod, causal: bool) -> tuple[Tensor, Tensor]:
    """The pairs that the definition keeps, and those that are allowed."""
    query, key = query.float(), key.repeat_interleave(2, 1).float()
    scores, offset = query @ key.mT * 0.25, key.shape[2] - query.shape[2]
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.float()
    if causal:
        later = torch.arange(key.shape[2]) > torch.arange(query.shape[2]).unsqueeze(-1) + offset
        scores = scores.masked_fill(later, -math.inf)
    allowed = scores != -math.inf
    return method.choose(scores, Rows(query, key, offset, 0.25, 2)) & allowed, allowed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MASKS)
def test_the_choice_is_the_definitions(name: str, kind: str, isa: str) -> None:
    method = parse(name)
    assert isinstance(method, PairMethod)
    for lengths, causal, dtype in itertools.product(LENGTHS, (False, True), (torch.float32, torch.bfloat16)):
        query, key = inputs(*lengths, dtype)
        mask = masked(kind, *lengths)
        want, allowed = defined(query, key, mask, method, causal)
        assert torch.equal(chosen(query, key, mask, method, causal, isa) & allowed, want), (lengths, causal, dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["none", "padding", "pairs"])
def test_numbers_that_are_not_finite_go_by_the_pairs(name: str, bad: float, kind: str, isa: str) -> None:
    method = parse(name)
    assert isinstance(method, PairMethod)
    query, key = inputs(70, 90, torch.float32)
    query[0, 1, 3, 2] = key[1, 0, 50, 1] = bad
    mask = masked(kind, 70, 90)
    want, allowed = defined(query, key, mask, method, True)
    assert torch.equal(chosen(query, key, mask, method, True, isa) & allowed, want)


def test_heads_of_whole_vectors_lie_where_they_are(isa: str) -> None:
    method = parse("blocktopk-0.25-b16-similar-f0")
    assert isinstance(method, PairMethod)
    for dtype, kind in itertools.product((torch.float32, torch.float16), ("none", "pairs")):
        query, key = inputs(100, 100, dtype, 64)
        query, key = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key))
        mask = masked(kind, 100, 100)
        want, allowed = defined(query, key, mask, method, False)
        assert torch.equal(chosen(query, key, mask, method, False, isa) & allowed, want)


def test_engines_of_tiles_leave_it_to_the_best_instruction_set() -> None:
    method = parse("blockmass-0.9-b32")
    assert isinstance(method, PairMethod)
    query, key = inputs(65, 65, torch.bfloat16)
    want = chosen(query, key, None, method, False, cpu.best_isa())
    assert torch.equal(chosen(query, key, None, method, False, "tiles-portable"), want)
