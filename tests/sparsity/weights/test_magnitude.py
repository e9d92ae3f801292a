"""One threshold for all layers, an exact count, ties by order."""

from __future__ import annotations

import pytest
import torch

from dynattn.sparsity import Magnitude


@pytest.mark.parametrize("keep", [0.001, 0.1, 0.37, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("grid", [False, True])
def test_the_largest_stay_and_ties_go_to_the_earlier(keep, grid):
    torch.manual_seed(0)
    weights = {"a": torch.randn(7, 5), "b": torch.randn(4, 9) * 3}
    if grid:
        weights = {name: weight.round() for name, weight in weights.items()}
    masks = Magnitude(keep).masks(weights)
    entries = [(-abs(x), place) for place, x in enumerate(torch.cat([w.flatten() for w in weights.values()]).tolist())]
    expected = {place for _, place in sorted(entries)[: round(keep * 71)]}
    found = torch.cat([masks[name].flatten() for name in weights])
    assert set(found.nonzero().flatten().tolist()) == expected
    assert [masks[name].shape for name in weights] == [weight.shape for weight in weights.values()]


def test_names_and_refusals():
    assert Magnitude.from_name("magnitude-0.25") == Magnitude(0.25)
    assert Magnitude.from_name("magnitude-1") is None
    with pytest.raises(ValueError, match="Magnitude: keep must be"):
        Magnitude(1.5)
    with pytest.raises(TypeError, match="Magnitude: keep must be a float"):
        Magnitude(1)
