"""Output gates: the factor, its neutral start, and the published layout of their rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dynattn.nn import OutputGate, join_gated, split_gated


@pytest.mark.parametrize(("form", "numbers"), [("headwise", 1), ("elementwise", 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_factor_is_a_sigmoid_of_each_head(form: Any, numbers: int, bias: bool) -> None:
    torch.manual_seed(0)
    gate = OutputGate(6, heads=3, head_dim=4, form=form, bias=bias, dtype=torch.float64)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    found = gate(x)
    assert found.shape == (2, 3, 5, numbers)
    weight = gate.projection.weight
    for b in range(2):
        for h in range(3):
            for i in range(5):
                for d in range(numbers):
                    row = h * numbers + d
                    logit = (weight[row] @ x[b, i]).item() + (gate.projection.bias[row].item() if bias else 0.0)
                    assert float(found[b, h, i, d]) == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-12)


@pytest.mark.parametrize("form", ["headwise", "elementwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_neutral_gate_is_one_exactly(form: Any, dtype: torch.dtype) -> None:
    gate = OutputGate(6, 3, 4, form, neutral=True, dtype=dtype)
    found = gate(torch.randn(2, 5, 6, dtype=dtype))
    assert found.dtype == torch.promote_types(dtype, torch.float32)  # a sigmoid in half precision is coarse near 1
    assert bool((found == 1).all())
    found.sum().backward()
    gradient = gate.projection.weight.grad
    assert gradient is not None
    assert bool((gradient != 0).all())


def test_the_ceiling_comes_with_the_weights() -> None:
    """A gate that was trained from its neutral start would else give half of what it gave."""
    trained, other = OutputGate(6, 3, 4, neutral=True), OutputGate(6, 3, 4)
    torch.nn.init.normal_(trained.projection.weight)
    x = torch.randn(1, 2, 6)
    assert 1 < float(trained(x).max()) < 2
    assert float(other(x).max()) < 1
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other(x), trained(x))


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (6, 6), (6, 1), (4, 4), (1, 1)])
@pytest.mark.parametrize("width", [1, 3])
def test_rows_are_taken_apart_by_groups_and_put_together_again(heads: int, groups: int, width: int) -> None:
    """Each row is named after what it is, in the order of the published code."""
    head_dim, each = 3, heads // groups
    names = []
    for group in range(groups):
        its = range(group * each, (group + 1) * each)
        names += [("query", head, d) for head in its for d in range(head_dim)]
        names += [("gate", head, d) for head in its for d in range(width)]
    rows = torch.arange(len(names)).unsqueeze(1).expand(-1, 5)
    query, gate = split_gated(rows, heads, head_dim, groups)
    assert [names[row] for row in query[:, 0].tolist()] == [
        ("query", head, d) for head in range(heads) for d in range(head_dim)
    ]
    assert [names[row] for row in gate[:, 0].tolist()] == [
        ("gate", head, d) for head in range(heads) for d in range(width)
    ]
    assert torch.equal(join_gated(query, gate, heads, groups), rows)
    bias = split_gated(rows[:, 0], heads, head_dim, groups)
    assert torch.equal(bias.gate, gate[:, 0])
    assert torch.equal(join_gated(*bias, heads, groups), rows[:, 0])


def test_wrong_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="form must be headwise or elementwise: got 'both'"):
        OutputGate(6, 3, 4, "both")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="rows must be 12 of queries and 3 or 12 of gates: got 12; check"):
        split_gated(torch.zeros(12, 5), heads=3, head_dim=4, groups=1)
    for wrong in (0, 2, 6):
        with pytest.raises(ValueError, match=f"split_gated: groups must divide heads: got {wrong}, 3"):
            split_gated(torch.zeros(15, 5), heads=3, head_dim=4, groups=wrong)
        with pytest.raises(ValueError, match=f"join_gated: groups must divide heads: got {wrong}, 3"):
            join_gated(torch.zeros(12, 5), torch.zeros(3, 5), 3, wrong)
