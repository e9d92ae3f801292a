import math

import pytest
import torch

import dynattn
from dynattn import NM, metrics
from dynattn.methods.nm import choose
from dynattn.reference import pairs as reference


def inputs(seed=0, heads=4, kv_heads=2, length=37, dim=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, heads, length, dim, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, kv_heads, length, dim, generator=generator, dtype=torch.float64)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def test_kept_mass_and_density_agree_with_the_method():
    query, key, value = inputs()
    mask = torch.rand(2, 1, 37, 37, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[0, 0, 5] = False  # an empty row
    _, aux = dynattn.attention(query, key, value, NM(2, 4), attn_mask=mask, causal=True, return_aux=True)
    s = reference.scores(query, key, mask, True, 8**-0.5)
    kept = choose(s, NM(2, 4))
    assert torch.allclose(metrics.kept_mass(s, kept), aux.kept_mass, atol=1e-5)
    assert torch.allclose(metrics.density(s, kept), aux.density, atol=1e-6)


def test_kept_mass_by_hand():
    s = torch.tensor([[0.0, math.log(3), -math.inf], [-math.inf] * 3])
    kept = torch.tensor([[False, True, True], [False] * 3])
    assert metrics.kept_mass(s, kept).tolist() == pytest.approx([0.75, 1.0])
    assert float(metrics.density(s, kept)) == 0.5  # one of the two allowed pairs
    assert float(metrics.density(s[1:], kept[1:])) == 1.0


def test_relative_error_and_cosine_by_hand():
    dense = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    out = torch.tensor([[3.0, 0.0], [3.0, 4.0]])
    assert float(metrics.relative_error(out, dense)) == pytest.approx(3 / 5)
    assert metrics.cosine(out, dense).tolist() == pytest.approx([1.0, 0.8])
    assert float(metrics.relative_error(dense * 0, dense * 0)) == 0.0


def test_diameter_is_the_largest_distance():
    value = inputs(length=2500)[2]  # more than one block
    value[1, 1, 2400, 0] = 50.0
    actual = metrics.diameter(value)
    assert actual.shape == (2, 2)
    for b in range(2):
        for h in range(2):
            v = value[b, h].double()
            assert float(actual[b, h]) == pytest.approx(float(torch.nn.functional.pdist(v).max()), rel=1e-6)
    assert metrics.diameter(value[:, :, :1]).tolist() == [[0.0, 0.0]] * 2
    assert metrics.diameter(value[:, :, :0]).tolist() == [[0.0, 0.0]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4), NM(1, 8), NM(3, 3)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_error_stays_within_the_certified_bound(method, spread, dtype):
    query, key, value = inputs(dtype=dtype)
    query = query * spread
    out, aux = dynattn.attention(query, key, value, method, causal=True, return_aux=True)
    dense = dynattn.attention(query, key, value, NM(1, 1), causal=True)
    certificate = metrics.certify(out, dense, aux.kept_mass, value)
    assert certificate.holds
    assert certificate.error.shape == certificate.bound.shape == (2, 4, 37)
    if not method.keeps_everything:
        assert float(certificate.error.max()) > 0.01  # there was something to bound


def test_certificate_is_tight_for_two_values():
    """Values at two points: the error is (1 - ρ) times their distance exactly."""
    value = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double().view(1, 1, 2, 2)
    query, key = torch.ones(1, 1, 1, 1).double(), torch.tensor([0.0, 1.0]).double().view(1, 1, 2, 1)
    out, aux = dynattn.attention(query, key, value, NM(1, 2), return_aux=True)
    dense = dynattn.attention(query, key, value, NM(1, 1))
    certificate = metrics.certify(out, dense, aux.kept_mass, value)
    assert float(certificate.error) == pytest.approx(float(certificate.bound), rel=1e-9)
    assert certificate.holds


def test_certificate_fails_for_a_wrong_output():
    query, key, value = inputs()
    out, aux = dynattn.attention(query, key, value, NM(2, 4), return_aux=True)
    dense = dynattn.attention(query, key, value, NM(1, 1))
    wrong = out.clone()
    wrong[1, 2, 3] += 10
    assert not metrics.certify(wrong, dense, aux.kept_mass, value).holds


def test_bad_arguments_are_refused():
    query, key, value = inputs()
    s = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="kept must be bool"):
        metrics.kept_mass(s, s)
    with pytest.raises(ValueError, match="kept must have the shape of scores"):
        metrics.density(s, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="out and dense must have one shape"):
        metrics.relative_error(query, key)
    with pytest.raises(ValueError, match="certify: kept_mass must be"):
        metrics.certify(query, query, torch.ones(3), value)
