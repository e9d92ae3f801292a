"""The predictor against its equation, one token at a time; draws against their probabilities."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dynattn.pruning.predictor import KEEP, Predictor, Predictors, draw, left_after

WIDTH = 8


def steep(predictor: Predictor, seed: int = 0) -> Predictor:
    """With weights so large that tokens are told apart, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in predictor.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return predictor.double()


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def linear(layer: torch.nn.Linear, x: list[float]) -> list[float]:
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + bias for row, bias in rows]


def loop(predictor: Predictor, hidden: Tensor, kept: Tensor) -> list[list[list[float]]]:
    """The equation, without a vector operation."""
    norm, embed, _ = cast(Any, predictor.embed)
    first, _, second, _, third, _ = cast(Any, predictor.score)
    out = []
    for sample, mask in zip(hidden.tolist(), kept.tolist(), strict=True):
        local, mixed = [], []
        for token in sample:
            mean = sum(token) / WIDTH
            deviation = math.sqrt(sum((v - mean) ** 2 for v in token) / WIDTH + norm.eps)
            weights = zip(token, norm.weight.tolist(), norm.bias.tolist(), strict=True)
            scaled = [(v - mean) / deviation * w + b for v, w, b in weights]
            z = [gelu(v) for v in linear(embed, scaled)]
            local.append(z[: WIDTH // 2])
            mixed.append(z[WIDTH // 2 :])
        count = sum(mask)
        whole = [
            sum(m[c] for m, k in zip(mixed, mask, strict=True) if k) / count if count else 0.0
            for c in range(WIDTH // 2)
        ]
        rows = []
        for z in local:
            x = [gelu(v) for v in linear(first, z + whole)]
            x = [gelu(v) for v in linear(second, x)]
            x = linear(third, x)
            total = max(x) + math.log(sum(math.exp(v - max(x)) for v in x))
            rows.append([v - total for v in x])
        out.append(rows)
    return out


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_equals_the_equation(share):
    predictor = steep(Predictor(WIDTH))
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 7, WIDTH, generator=generator, dtype=torch.float64)
    kept = torch.rand(3, 7, generator=generator) < share
    torch.testing.assert_close(predictor(hidden, kept), torch.tensor(loop(predictor, hidden, kept)).double())


def test_tokens_that_are_not_kept_change_nothing():
    predictor = steep(Predictor(WIDTH))
    hidden = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    kept = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 0]]).bool()
    other = torch.where(kept.unsqueeze(-1), hidden, 100 * torch.randn_like(hidden))
    torch.testing.assert_close(predictor(hidden, kept)[kept], predictor(other, kept)[kept])
    assert not torch.allclose(predictor(hidden, kept)[kept], predictor(hidden, torch.ones_like(kept))[kept])


def test_draws_follow_the_probabilities_and_accumulate():
    torch.manual_seed(0)
    probability = torch.tensor([0.9, 0.5, 0.2, 0.9])
    log_probabilities = torch.stack([probability, 1 - probability], -1).log().expand(20_000, 4, 2)
    before = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(20_000, 4)
    found = draw(log_probabilities, before)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    expected = torch.tensor([0.9, 0.5, 0.2, 0.0])
    assert (found.mean(0) - expected).abs().max() < 4 * math.sqrt(0.25 / 20_000)


def test_the_gradient_is_that_of_the_soft_sample():
    logits = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    before = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 1, 1, 1]]).double()
    factor = torch.randn(2, 5, dtype=torch.float64)
    torch.manual_seed(3)
    (draw(logits.log_softmax(-1), before) * factor).sum().backward()
    hard, logits.grad = logits.grad, None
    torch.manual_seed(3)
    soft = torch.nn.functional.gumbel_softmax(logits.log_softmax(-1), hard=False)[..., KEEP]
    (soft * before * factor).sum().backward()
    torch.testing.assert_close(hard, logits.grad)
    assert hard is not None
    assert (hard.abs().sum(-1) > 0).equal(before.bool())


@pytest.mark.parametrize(
    ("tokens", "ratio", "expected"),
    [
        (256, 0.7, [179, 125, 87]), (100, 0.7, [70, 49, 34]), (1369, 0.5, [684, 342, 171]), (5, 1.0, [5, 5, 5]),
        (3, 0.3, [1, 1, 1]), (1, 0.9, [1, 1, 1]),
    ],
)  # fmt: skip
def test_how_many_are_left(tokens, ratio, expected):
    assert [left_after(tokens, ratio, stage) for stage in range(3)] == expected


def test_saved_predictors_come_back(tmp_path):
    first = Predictors(WIDTH, (1, 2), 0.6)
    first.save(tmp_path / "new" / "folder")
    second = Predictors.load(tmp_path / "new" / "folder")
    assert (second.width, second.layers, second.keep_ratio, second.training) == (WIDTH, (1, 2), 0.6, False)
    hidden, kept = torch.randn(2, 3, WIDTH), torch.ones(2, 3)
    for stage in range(2):
        assert torch.equal(first.log_probabilities(stage, hidden, kept), second.log_probabilities(stage, hidden, kept))
    assert not torch.equal(first.log_probabilities(0, hidden, kept), first.log_probabilities(1, hidden, kept))
    with pytest.raises(ValueError, match=r"must hold predictors\.json and predictors\.safetensors"):
        Predictors.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("predictors.json", "{"), ("predictors.json", "[]"), ("predictors.json", "{\"width\": 3}"),
     ("predictors.safetensors", ""), ("predictors.safetensors", "no tensors at all")],
)  # fmt: skip
def test_damaged_predictors_are_refused(name, content, tmp_path):
    Predictors(WIDTH, (1, 2), 0.6).save(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"must hold what save wrote: .*; train some again"):
        Predictors.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"width": 6}, "multiple of 4"), ({"width": 0}, "multiple of 4"),
        ({"width": 8, "layers": ()}, "ascend"), ({"width": 8, "layers": (0, 3)}, "ascend"),
        ({"width": 8, "layers": (3, 3)}, "ascend"), ({"width": 8, "layers": (6, 3)}, "ascend"),
        ({"width": 8, "keep_ratio": 0.0}, "above 0"), ({"width": 8, "keep_ratio": 1.1}, "above 0"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        Predictors(**arguments)
