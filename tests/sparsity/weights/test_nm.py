"""N of every M along the inputs, by loops."""

from __future__ import annotations

import pytest
import torch

from dynattn.sparsity import DSnoT, NMWeights


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8), (3, 5)])
@pytest.mark.parametrize("inputs", [1, 3, 16, 19])
@pytest.mark.parametrize("grid", [False, True])
def test_each_group_keeps_its_largest_and_a_tail_what_it_has(n, m, inputs, grid):
    torch.manual_seed(0)
    weight = torch.randn(3, inputs)
    weight = weight.round() if grid else weight
    mask = NMWeights(n, m).masks({"a": weight})["a"]
    for row, kept in zip(weight.abs().tolist(), mask.tolist(), strict=True):
        for start in range(0, inputs, m):
            group = sorted((-x, place) for place, x in enumerate(row[start : start + m]))
            expected = {place for _, place in group[:n]}
            assert {place for place, one in enumerate(kept[start : start + m]) if one} == expected


def test_names_and_refusals():
    assert NMWeights.from_name("nmweight-2-4") == NMWeights(2, 4)
    assert NMWeights.from_name("nm-2-4") is None
    for method in (NMWeights(2, 4, "wanda"), NMWeights(1, 8, "wanda", DSnoT()), NMWeights(2, 4, refinement=DSnoT(0))):
        assert NMWeights.from_name(method.name) == method
        assert method.looks_at_inputs
    assert NMWeights(2, 4, "wanda", DSnoT()).name == "nmweight-2-4-wanda-dsnot"
    assert not NMWeights(2, 4).looks_at_inputs
    with pytest.raises(ValueError, match="n must be from 1 to m"):
        NMWeights(3, 2)
    with pytest.raises(TypeError, match="n and m must be ints"):
        NMWeights(1.0, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="score must be 'magnitude' or 'wanda': got 'norm'"):
        NMWeights(2, 4, "norm")  # pyright: ignore[reportArgumentType]
