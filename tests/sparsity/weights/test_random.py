"""Exact totals, densities by the definition, draws by seed."""

from __future__ import annotations

import pytest
import torch

from dynattn.sparsity import RandomWeights

SHAPES = [(4, 4), (64, 64), (64, 256), (256, 64), (300, 7), (5, 2)]


@pytest.mark.parametrize("layers", ["erk", "uniform"])
@pytest.mark.parametrize("keep", [0.001, 0.03, 0.1, 0.25, 0.5, 0.77, 0.9, 0.99, 1.0])
def test_totals_are_exact_and_layers_hold_them(keep, layers):
    counts = RandomWeights(keep, layers=layers).counts(SHAPES)
    sizes = [inputs * outputs for inputs, outputs in SHAPES]
    assert sum(counts) == round(keep * sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    if layers == "uniform":
        assert all(abs(count - keep * size) <= 1 for count, size in zip(counts, sizes, strict=True))
        return
    around = [inputs + outputs for inputs, outputs in SHAPES]
    full = [count == size for count, size in zip(counts, sizes, strict=True)]
    factors = [count / wide for count, wide, all_ in zip(counts, around, full, strict=True) if not all_]
    if factors:  # c is the same for all layers that are not dense, up to rounding, and too much for those that are
        assert max(factors) - min(factors) <= max(2 / wide for wide in around)
        worst = min(factors)
        assert all(
            (worst + 2 / wide) * wide >= size for wide, size, all_ in zip(around, sizes, full, strict=True) if all_
        )


def test_small_layers_are_denser():
    counts = RandomWeights(0.1).counts([(64, 64), (256, 256)])
    assert counts[0] / 64**2 == pytest.approx(4 * counts[1] / 256**2, rel=1e-2)


def test_draws_follow_the_seed_and_the_counts():
    weights = {str(number): torch.randn(outputs, inputs) for number, (inputs, outputs) in enumerate(SHAPES)}
    method = RandomWeights(0.3, seed=5)
    masks, again, other = method.masks(weights), method.masks(weights), RandomWeights(0.3).masks(weights)
    assert [int(mask.sum()) for mask in masks.values()] == method.counts(SHAPES)
    assert all(torch.equal(masks[name], again[name]) for name in weights)
    assert not all(torch.equal(masks[name], other[name]) for name in weights)
    assert [mask.shape for mask in masks.values()] == [weight.shape for weight in weights.values()]


def test_names_and_refusals():
    for method in (RandomWeights(0.5), RandomWeights(0.25, 3), RandomWeights(0.1, 2, "uniform")):
        assert RandomWeights.from_name(method.name) == method
    assert RandomWeights(0.1, 2, "uniform").name == "randomweight-0.1-uniform-r2"
    assert RandomWeights.from_name("random-0.5") is None
    for wrong in ((2.0,), (0.5, -1), (0.5, 0, "er")):
        with pytest.raises(ValueError, match="RandomWeights: "):
            RandomWeights(*wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="RandomWeights: seed must be an int"):
        RandomWeights(0.5, True)
