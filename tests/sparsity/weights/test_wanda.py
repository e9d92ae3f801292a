"""Weights scored with their inputs, by loops."""

from __future__ import annotations

import pytest
import torch

from dynattn.sparsity import DSnoT, InputStatistics, NMWeights, Wanda
from dynattn.sparsity.weights.wanda import score

INPUTS = 19


@pytest.fixture(scope="module")
def statistics() -> dict[str, InputStatistics]:
    generator = torch.Generator().manual_seed(1)
    mean, variance = torch.randn(INPUTS, generator=generator), torch.rand(INPUTS, generator=generator)
    variance[4] = mean[4] = 0.0  # an input that is always 0
    return {"a": InputStatistics(7, mean.double(), variance.double())}


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(40, INPUTS, generator=torch.Generator().manual_seed(0))


def _scores(weight, statistics) -> list[list[float]]:
    of = statistics["a"]
    norms = [(of.count * (v + m * m)) ** 0.5 for m, v in zip(of.mean.tolist(), of.variance.tolist(), strict=True)]
    return [[abs(w) * norm for w, norm in zip(row, norms, strict=True)] for row in weight.tolist()]


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 1.0])
def test_each_output_keeps_its_best(keep, weight, statistics):
    found = Wanda(keep).masks({"a": weight}, statistics)["a"]
    for row, kept in zip(_scores(weight, statistics), found.tolist(), strict=True):
        order = sorted(range(INPUTS), key=lambda k: (-row[k], k))
        assert {k for k in range(INPUTS) if kept[k]} == set(order[: round(keep * INPUTS)])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8), (3, 5)])
def test_each_group_keeps_its_best(n, m, weight, statistics):
    found = NMWeights(n, m, "wanda").masks({"a": weight}, statistics)["a"]
    for row, kept in zip(_scores(weight, statistics), found.tolist(), strict=True):
        for start in range(0, INPUTS, m):
            group = range(start, min(start + m, INPUTS))
            order = sorted(group, key=lambda k: (-row[k], k))
            assert {k for k in group if kept[k]} == set(order[:n])
    assert not found.equal(NMWeights(n, m).masks({"a": weight})["a"])


def test_masks_are_refined_afterwards(weight, statistics):
    refinement = DSnoT(least=0.0)
    for method, m in ((Wanda(0.3), None), (NMWeights(1, 4, "wanda"), 4), (NMWeights(1, 4), 4)):
        start = method.masks({"a": weight}, statistics)["a"]
        refined = type(method).from_name(f"{method.name}-dsnot-l0.0")
        assert refined is not None
        assert refined.refinement == refinement
        found = refined.masks({"a": weight}, statistics)["a"]
        assert found.equal(refinement.refined(weight, start, statistics["a"], m))
        assert not found.equal(start)


def test_half_precision_is_scored_in_float32():
    large = InputStatistics(10**6, torch.tensor([100.0, 200.0]).double(), torch.zeros(2).double())
    found = score(torch.tensor([[1.0, 1.0]], dtype=torch.float16), large)
    assert found.tolist() == [[1e5, 2e5]]  # more than float16 holds


def test_names_and_refusals():
    for method in (Wanda(0.25), Wanda(0.5, DSnoT()), Wanda(0.5, DSnoT(3, False, 0.25))):
        assert Wanda.from_name(method.name) == method
        assert method.looks_at_inputs
    assert Wanda(0.5, DSnoT(3, False, 0.25)).name == "wanda-0.5-dsnot-unsigned-c3-l0.25"
    assert Wanda.from_name("wanda-1") is None
    with pytest.raises(ValueError, match="Wanda: keep must be"):
        Wanda(1.5)
    with pytest.raises(TypeError, match="Wanda: keep must be a float"):
        Wanda(1)
