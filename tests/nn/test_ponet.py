"""PoNet against loops that read like its definition; padding, segments, gradients."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynattn.nn import PoNet, equal_segments

WIDTH, HEADS = 6, 2


def ponet(dtype: torch.dtype = torch.float64, bias: bool = True) -> PoNet:
    torch.manual_seed(0)
    module = PoNet(WIDTH, HEADS, bias=bias, dtype=dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


@torch.no_grad()
def by_loops(module: PoNet, x: Tensor, segments: list[int], alive: list[bool]) -> Tensor:
    """One sample, (length, width), number by number."""
    q, k, o, s, loc = (
        projection(x).tolist()
        for projection in (
            module.q_proj, module.k_proj, module.fusion_proj, module.segment_proj, module.local_proj,
        )
    )  # fmt: skip
    tokens = [i for i, is_token in enumerate(alive) if is_token]
    width, out = x.shape[1], torch.zeros_like(x)
    each = width // module.heads
    everywhere = [0.0] * width
    for head in range(module.heads):
        numbers = range(head * each, (head + 1) * each)
        if not tokens:
            continue
        mean = {d: sum(q[i][d] for i in tokens) / len(tokens) for d in numbers}
        scores = {j: sum(mean[d] * k[j][d] for d in numbers) / math.sqrt(each) for j in tokens}
        total = sum(math.exp(score) for score in scores.values())
        for d in numbers:
            everywhere[d] = sum(math.exp(scores[j]) / total * k[j][d] for j in tokens)
    for i in tokens:
        for d in range(width):
            segment = max(s[j][d] for j in tokens if segments[j] == segments[i])
            local = max(loc[j][d] for j in tokens if abs(j - i) <= 1)
            out[i, d] = (everywhere[d] + segment) * o[i][d] + local
    return module.out_proj(out)


CASES: dict[str, tuple[list[int], list[bool]]] = {
    "one token": ([0], [True]),
    "one segment": ([0] * 7, [True] * 7),
    "a segment each": (list(range(7)), [True] * 7),
    "segments apart": ([0, 2, 0, 6, 2, 2, 0], [True] * 7),
    "padded right": ([0, 0, 1, 1, 2, 2, 2], [True] * 5 + [False] * 2),
    "padded left": ([3, 3, 1, 1, 2, 2, 2], [False] * 3 + [True] * 4),
    "padded inside": ([0, 0, 0, 1, 1, 1, 1], [True, True, False, False, True, True, False]),
    "padding alone": ([0, 0, 1], [False] * 3),
    "a segment of padding": ([0, 0, 1, 1], [True, True, False, False]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_definition(case: str, bias: bool) -> None:
    module, (segments, alive) = ponet(bias=bias), CASES[case]
    x = torch.randn(1, len(alive), WIDTH, dtype=torch.float64)
    expected = by_loops(module, x[0], segments, alive)
    mask = None if all(alive) else torch.tensor([alive])
    torch.testing.assert_close(module(x, torch.tensor([segments]), mask)[0], expected, rtol=1e-10, atol=1e-12)
    if set(segments) == {0}:
        torch.testing.assert_close(module(x, None, mask)[0], expected, rtol=1e-10, atol=1e-12)


def test_a_batch_is_each_of_its_samples() -> None:
    module = ponet()
    both = [CASES["padded right"], CASES["padded inside"], CASES["segments apart"]]
    x = torch.randn(3, 7, WIDTH, dtype=torch.float64)
    found = module(x, torch.tensor([s for s, _ in both]), torch.tensor([a for _, a in both]))
    for sample, (segments, alive) in enumerate(both):
        torch.testing.assert_close(found[sample], by_loops(module, x[sample], segments, alive))


def test_padding_changes_nothing_whatever_it_holds() -> None:
    module = ponet()
    segments, alive = (torch.tensor([part]) for part in CASES["padded inside"])
    x = torch.randn(1, 7, WIDTH, dtype=torch.float64)
    expected = module(x, segments, alive)
    for filling in (1e30, math.nan, math.inf):
        found = module(x.masked_fill(~alive.unsqueeze(-1), filling), segments, alive)
        assert torch.equal(found[alive], expected[alive])
    assert torch.equal(expected[~alive], module.out_proj(torch.zeros(3, WIDTH, dtype=torch.float64)))


def test_moving_tokens_inside_a_segment_moves_what_is_of_the_segment_alone() -> None:
    module = ponet()
    nn.init.zeros_(module.local_proj.weight)
    x, order = torch.randn(1, 7, WIDTH, dtype=torch.float64), [2, 0, 1, 3, 6, 5, 4]
    segments = torch.tensor([[0, 0, 0, 1, 2, 2, 2]])
    torch.testing.assert_close(module(x[:, order], segments), module(x, segments)[:, order])
    torch.testing.assert_close(module(x[:, [3, 1, 2, 0, 4, 5, 6]], segments)[:, 4:], module(x, segments)[:, 4:])


@pytest.mark.parametrize("case", ["one token", "padded inside", "padding alone", "segments apart"])
def test_gradients(case: str) -> None:
    module, (segments, alive) = ponet(), CASES[case]
    x = torch.randn(1, len(alive), WIDTH, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([alive])
    assert torch.autograd.gradcheck(lambda at: module(at, torch.tensor([segments]), mask), x)
    module(x, torch.tensor([segments]), mask).sum().backward()
    assert x.grad is not None
    assert bool((x.grad[~mask] == 0).all())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    module, (segments, alive) = ponet(dtype), CASES["padded right"]
    x, place = torch.randn(1, 7, WIDTH, dtype=dtype), (torch.tensor([segments]), torch.tensor([alive]))
    found = module(x, *place)
    assert found.dtype == dtype
    exact = copy.deepcopy(module).double()(x.double(), *place)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=40 * torch.finfo(dtype).eps)


def test_it_compiles_whole_and_computes_under_autocast() -> None:
    module, (segments, alive) = ponet(torch.float32), CASES["padded right"]
    place = torch.tensor([segments]), torch.tensor([alive])
    x = torch.randn(1, 7, WIDTH)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, *place), module(x, *place))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x, *place).dtype == torch.bfloat16


def test_nothing_to_mix() -> None:
    for shape in ((0, 4, WIDTH), (2, 0, WIDTH)):
        x = torch.zeros(shape, dtype=torch.float64)
        ids, mask = torch.zeros(shape[:2], dtype=torch.int64), torch.ones(shape[:2], dtype=torch.bool)
        for place in ((None, None), (ids, mask)):
            assert ponet()(x, *place).shape == shape


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("side", ["right", "left"])
def test_equal_segments_are_those_of_each_sample_alone(count: int, side: str) -> None:
    lengths = (8, 5, 1)
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    mask = mask if side == "right" else mask.flip(1)
    found = equal_segments(torch.zeros(3, 8, WIDTH), count, mask)
    for sample, length in enumerate(lengths):
        alone = [i // (length // count + 1) for i in range(length)]
        assert found[sample, mask[sample]].tolist() == alone
        assert max(alone) < count
        assert equal_segments(torch.zeros(1, length, WIDTH), count)[0].tolist() == alone
    assert int(found.max()) < 8
    assert equal_segments(torch.zeros(1, 3, WIDTH), 2, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0, 0, 0]]


def test_what_does_not_fit_is_refused() -> None:
    module, x = ponet(), torch.zeros(2, 4, WIDTH, dtype=torch.float64)
    ids: Any = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="embed_dim must be a multiple of heads: got 6, 4"):
        PoNet(6, 4)
    with pytest.raises(TypeError, match=r"segments must be torch.int64: got torch.float32; convert it"):
        module(x, ids.float())
    with pytest.raises(TypeError, match=r"mask must be torch.bool: got torch.int64"):
        module(x, None, ids)
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 4\): got \(2, 3\)"):
        module(x, None, ids[:, :3].bool())
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=f"segments must be between 0 and 3, .*: got .*{wrong}"):
            module(x, ids + torch.tensor([0, 0, 0, wrong]))
    with pytest.raises(ValueError, match="count must be at least 1: got 0"):
        equal_segments(x, 0)
