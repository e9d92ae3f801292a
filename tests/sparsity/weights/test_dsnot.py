"""The exchanges of DSnoT: by hand, by loops, and what they promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dynattn.sparsity import DSnoT, InputStatistics
from dynattn.sparsity.weights.nm import best


def _statistics(mean, variance, count: int = 10) -> InputStatistics:
    return InputStatistics(count, torch.as_tensor(mean).double(), torch.as_tensor(variance).double())


def _missing(weight, kept, mean) -> list[float]:
    return [
        sum(w * x for w, x, stays in zip(row, mean, mask, strict=True) if not stays)
        for row, mask in zip(weight.tolist(), kept.tolist(), strict=True)
    ]


def _by_loops(weight, kept, mean, variance, norm, method: DSnoT, m: int | None) -> list[list[bool]]:
    """The definition, output by output."""
    found = []
    for w, mask in zip(weight.tolist(), kept.tolist(), strict=True):
        e = list(mask)
        missing = sum(w[k] * mean[k] for k in range(len(w)) if not e[k])
        for _ in range(method.cycles):
            if abs(missing) <= method.least or all(e):
                break
            sign = math.copysign(1, missing)
            dropped = [k for k in range(len(w)) if not e[k]]
            grow = max(dropped, key=lambda k: (sign * w[k] * mean[k] / max(variance[k], 1e-30), -k))
            among = [k for k in range(len(w)) if e[k] and (m is None or k // m == grow // m)]
            if method.signed:
                among = [k for k in among if w[k] * mean[k] * sign < 0]
            if not among:
                break
            drop = min(among, key=lambda k: (abs(w[k]) * norm[k], k))
            after = missing - w[grow] * mean[grow] + w[drop] * mean[drop]
            if abs(after) > abs(missing):
                break
            e[grow], e[drop], missing = True, False, after
            if missing == 0 or math.copysign(1, missing) != sign:
                break
        found.append(e)
    return found


def test_six_features_by_hand():
    weight = torch.tensor([[3.0, 1.0, -2.0, 0.5, 1.0, -1.0]])
    mean, variance = [1.0, 1.0, 1.0, 2.0, 1.5, 1.0], [1.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    kept = torch.tensor([[True, False, True, False, False, True]])
    # Missing: 1 + 1 + 1.5 = 3.5. Gains 1/0.5 = 2, 1, 1.5: weight 1 grows. Of those with the other sign, -2 and -1, the
    # one with the least |w| norm goes: weight 5. Missing: 3.5 - 1 - 1 = 1.5. Then weight 4 for weight 2:
    # 1.5 - 1.5 - 2 = -2, which is more than 1.5, so that it is not done.
    once = DSnoT(least=0.0).refined(weight, kept, _statistics(mean, variance))
    assert once.tolist() == [[True, True, True, False, False, False]]
    # Without signs weight 5 goes as well (|w| norm least), and then weight 1 for weight 4, though it has just grown:
    # 1.5 - 1.5 + 1 = 1. Weight 1 once more for weight 4 would give 1 - 1 + 1.5, which is more.
    unsigned = DSnoT(signed=False, least=0.0).refined(weight, kept, _statistics(mean, variance))
    assert unsigned.tolist() == [[True, False, True, False, True, False]]
    assert DSnoT(least=3.5).refined(weight, kept, _statistics(mean, variance)).equal(kept)


@pytest.mark.parametrize("m", [None, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("cycles", [1, 50])
@pytest.mark.parametrize("width", [16, 19])
def test_it_is_the_definition_and_never_leaves_more_missing(m, signed, cycles, width):
    generator = torch.Generator().manual_seed(width + cycles)
    weight = torch.randn(12, width, generator=generator)
    weight[3] = weight[3].abs()
    mean, variance = torch.randn(width, generator=generator), torch.rand(width, generator=generator)
    variance[2], mean[3] = 0.0, 0.0
    statistics = _statistics(mean, variance)
    kept = best(weight.abs(), (m or width) // 4, m or width)
    method = DSnoT(cycles, signed, least=0.05)
    found = method.refined(weight, kept, statistics, m)
    means, variances, norms = (x.tolist() for x in (mean.double(), variance.double(), statistics.norm))
    assert found.tolist() == _by_loops(weight, kept, means, variances, norms, method, m)
    assert not found.equal(kept)
    assert found.sum(1).equal(kept.sum(1))
    if m is not None:
        for start in range(0, width, m):
            assert found[:, start : start + m].sum(1).equal(kept[:, start : start + m].sum(1))
    before, after = (_missing(weight, mask, mean.tolist()) for mask in (kept, found))
    assert all(abs(x) <= abs(y) + 1e-6 for x, y in zip(after, before, strict=True))


def test_no_cycles_and_inputs_without_a_mean_leave_the_mask():
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    kept = best(weight.abs(), 2, 4)
    rest = torch.ones(12)
    assert DSnoT(0).refined(weight, kept, _statistics(rest, rest), 4).equal(kept)
    assert DSnoT(least=0.0).refined(weight, kept, _statistics(0 * rest, rest), 4).equal(kept)
    everything = torch.ones_like(kept)
    assert DSnoT(least=0.0).refined(weight, everything, _statistics(rest, rest)).equal(everything)


def test_refusals():
    wrongs: list[dict[str, Any]] = [{"cycles": -1}, {"least": -0.1}, {"least": math.inf}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="DSnoT: cycles must not be negative"):
            DSnoT(**wrong)
    with pytest.raises(TypeError, match="DSnoT: cycles must be an int"):
        DSnoT(True)
    with pytest.raises(TypeError, match="DSnoT: least must be a float"):
        DSnoT(least=1)
