import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import Tensor

import dynattn
from dynattn.maths.random_features import log_features
from dynattn.methods import Scatterbrain, parse
from tests import gradients
from tests.methods.mixing import looped

SMALL = Scatterbrain(features=7, buckets=4, rounds=2)
HEAD_DIM = 5


def definition(query: Tensor, key: Tensor, bias: Tensor, seen: list[int], method: Scatterbrain, scale: float) -> Tensor:
    """One weight after the other: exact where a round's hash agrees, else the product of the features."""
    w, turns = method.draw(query.shape[0])
    q, k = query * math.copysign(abs(scale) ** 0.5, scale), key * abs(scale) ** 0.5

    def bucket(x: Tensor, turn: Tensor) -> int:
        along = [float(x @ column) for column in turn.T]
        along += [-a for a in along]
        return along.index(max(along))

    def feature(x: Tensor, direction: Tensor) -> float:
        return math.exp(float(direction @ x - x @ x / 2)) / method.features**0.5

    found = []
    for j in seen:
        near = any(bucket(q, turn) == bucket(k[j], turn) for turn in turns)
        weight = math.exp(float(q @ k[j])) if near else sum(feature(q, d) * feature(k[j], d) for d in w)
        found.append(weight * math.exp(bias[j]))
    return torch.tensor(found, dtype=torch.float64) / sum(found)


def inputs(q_len: int, kv_len: int, heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(q_len * 1000 + kv_len)
    shapes = (2, heads, q_len, HEAD_DIM), (2, kv_heads, kv_len, HEAD_DIM), (2, kv_heads, kv_len, 3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (7, 7), (30, 30), (3, 40), (1, 18), (9, 4)])
def test_is_the_definition(q_len: int, kv_len: int, causal: bool) -> None:
    q, k, v = inputs(q_len, kv_len)
    out = dynattn.attention(q, k, v, SMALL, causal=causal)
    weights = partial(definition, method=SMALL, scale=HEAD_DIM**-0.5)
    torch.testing.assert_close(out, looped(q, k, v, None, causal, weights), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", [SMALL, dataclasses.replace(SMALL, rounds=0), dataclasses.replace(SMALL, rounds=3)])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_of_keys(causal: bool, method: Scatterbrain) -> None:
    q, k, v = inputs(20, 20)
    mask = torch.rand(2, 1, 1, 20, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[1] = False  # nothing allowed
    k[0, :, ~mask[0, 0, 0]] = math.inf  # what a forbidden key holds must not matter
    v[0, :, ~mask[0, 0, 0]] = math.nan
    bias = torch.zeros(2, 4, 20).masked_fill(~mask[:, :, 0], -math.inf)
    out = dynattn.attention(q, k, v, method, attn_mask=mask, causal=causal)
    weights = partial(definition, method=method, scale=HEAD_DIM**-0.5)
    torch.testing.assert_close(out, looped(q, k, v, bias, causal, weights), rtol=1e-9, atol=1e-11)
    assert (out[1] == 0).all()


@pytest.mark.parametrize("scale", [0.7, -0.4])
def test_bias_of_keys_by_head_and_scale(scale: float) -> None:
    q, k, v = inputs(18, 18)
    bias = torch.randn(2, 4, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    bias[:, :, 3] = -math.inf
    out = dynattn.attention(q, k, v, SMALL, attn_mask=bias.unsqueeze(2), causal=True, scale=scale)
    weights = partial(definition, method=SMALL, scale=scale)
    torch.testing.assert_close(out, looped(q, k, v, bias, True, weights), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_is_dense_attention_where_every_pair_shares_a_bucket(causal: bool) -> None:
    q, k, v = inputs(70, 70)
    q, k = q.abs(), k.abs()  # at most a right angle apart: a round of two buckets parts them with a chance of 1/2
    method = Scatterbrain(features=4, buckets=2, rounds=40)
    out = dynattn.attention(q, k, v, method, causal=causal)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(out, dense, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("rounds", [0, 1])
def test_sums_are_unbiased(orthogonal: bool, rounds: int) -> None:
    """Mean over seeds of Σ_j w_ij against Σ_j exp(s_ij): within 5 of its standard errors, and those small."""
    q, k, _ = (0.5 * x[:1, :1] for x in inputs(6, 30, 1, 1))
    s = (HEAD_DIM**-0.5 * q @ k.mT)[0, 0]
    exact = s.exp().sum(-1)
    found = []
    for seed in range(400):
        method = Scatterbrain(16, 4, rounds, orthogonal, seed)
        w, turns = method.draw(HEAD_DIM)
        root = HEAD_DIM**-0.25
        weights = log_features(root * q, w)[0, 0].exp() @ log_features(root * k, w)[0, 0].exp().T
        for turn in turns:
            bucket = [torch.cat((x[0, 0] @ turn, -x[0, 0] @ turn), -1).argmax(-1) for x in (q, k)]
            weights = torch.where(bucket[0].unsqueeze(1) == bucket[1], s.exp(), weights)
        found.append(weights.sum(-1))
        ours = dynattn.attention(q, k, torch.eye(30, dtype=torch.float64)[None, None], method)
        torch.testing.assert_close(ours[0, 0], weights / weights.sum(-1, keepdim=True))
    sums = torch.stack(found)
    error = sums.std(0) / len(sums) ** 0.5
    assert ((sums.mean(0) - exact).abs() < 5 * error).all()
    assert (error < 0.04 * exact).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_float32_follows_float64(causal: bool, factor: float) -> None:
    """With exponents of thousands in both parts at a factor of 30: finite, and the same answer."""
    q, k, v = (factor**power * x for power, x in zip((1, 1, 0), inputs(60, 60, dtype=torch.float32), strict=True))
    out = dynattn.attention(q, k, v, Scatterbrain(16, 4, 2), causal=causal)
    exact = dynattn.attention(q.double(), k.double(), v.double(), Scatterbrain(16, 4, 2), causal=causal)
    assert out.isfinite().all()
    torch.testing.assert_close(out.double(), exact, rtol=2e-3 * factor, atol=2e-4 * factor)


def test_what_follows_does_not_change_a_causal_row() -> None:
    q, k, v = inputs(60, 60)
    before = dynattn.attention(q, k, v, SMALL, causal=True)
    k[:, :, 40:], v[:, :, 40:] = 4 * k[:, :, 40:], -7.0
    after = dynattn.attention(q, k, v, SMALL, causal=True)
    torch.testing.assert_close(before[:, :, :40], after[:, :, :40], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(before[:, :, 40:], after[:, :, 40:])


def test_padding_changes_nothing() -> None:
    q, k, v = inputs(45, 45)
    mask = torch.arange(45) < 33
    padded = dynattn.attention(q, k, v, SMALL, attn_mask=mask[None, None, None])
    alone = dynattn.attention(q[:, :, :33], k[:, :, :33], v[:, :, :33], SMALL)
    torch.testing.assert_close(padded[:, :, :33], alone)


def test_a_mask_by_query_is_refused() -> None:
    q, k, v = inputs(6, 6)
    with pytest.raises(ValueError, match="scatterbrain: attn_mask must be the same for every query"):
        dynattn.attention(q, k, v, SMALL, attn_mask=torch.ones(6, 6, dtype=torch.bool))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rounds", [0, 2])
def test_gradients(causal: bool, rounds: int) -> None:
    q, k, v = (x[:1].requires_grad_() for x in inputs(19, 19, 2, 1))
    mask = torch.ones(1, 1, 1, 19, dtype=torch.bool)
    mask[..., :2] = False  # with causal, two queries see nothing

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dynattn.attention(query, key, value, Scatterbrain(7, 4, rounds), attn_mask=mask, causal=causal)

    gradients.check(call, (q, k, v))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("scatterbrain-f64-b16-r2", Scatterbrain()),
        ("scatterbrain-f8-b4-r0", Scatterbrain(8, 4, 0)),
        ("scatterbrain-f8-b4-r1-iid-seed3", Scatterbrain(8, 4, 1, False, 3)),
    ],
)
def test_names_round_trip(name: str, method: Scatterbrain) -> None:
    assert method.name == name
    assert parse(name) == method
    assert parse("scatterbrain") == Scatterbrain()
    assert not method.keeps_everything


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"features": 0}, ValueError, "features must be at least 1"),
        ({"buckets": 5}, ValueError, "buckets must be even"),
        ({"rounds": -1}, ValueError, "rounds must be at least 0"),
        ({"seed": True}, TypeError, "seed must be an int"),
        ({"orthogonal": 1}, TypeError, "orthogonal must be a bool"),
    ],
)
def test_wrong_values_are_refused(arguments: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        Scatterbrain(**arguments)
