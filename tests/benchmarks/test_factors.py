"""benchmarks/factors.py: Monarch's product is its definition, and every way is timed and told."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (8, 16), (16, 8)])
def test_monarch_is_its_definition(script: Any, inputs: int, outputs: int):
    factors = script("factors")
    torch.manual_seed(0)
    first, second = (torch.randn(shape) for shape in factors.of_blocks(inputs, outputs))
    x = torch.randn(3, inputs)
    (k, q, p), (blocks, s, r) = first.shape, second.shape
    assert (k * p, s * blocks, blocks * r) == (inputs, outputs, k * q)
    expected = torch.zeros(3, outputs)
    for token in range(3):
        u = [sum(first[i, j, h] * x[token, i * p + h] for h in range(p)) for i in range(k) for j in range(q)]
        for one in range(blocks):
            for row in range(s):
                total = sum(second[one, row, at] * u[at * blocks + one] for at in range(r))
                expected[token, row * blocks + one] = total
    torch.testing.assert_close(factors.monarch(x, first, second), expected)


def test_every_way_is_timed_and_told(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    factors = script("factors")
    changes = {
        "RECORD": tmp_path / "factors.json", "SHAPES": ((8, 16), (16, 8)), "TOKENS": (1, 3),
        "interleaved": partial(factors.interleaved, rounds=2, min_sample=None),
    }  # fmt: skip
    for name, value in changes.items():
        monkeypatch.setattr(factors, name, value)
    assert factors.table() == "Not measured yet."
    threads = torch.get_num_threads()
    factors.measure()
    torch.set_num_threads(threads)
    told = factors.table()
    assert "|  | tokens | 8→16 | 16→8 |" in told
    for name in ("DSFormer", "DSFormer, ideal", "Monarch", "Monarch, ideal"):
        assert told.count(f"| {name} | ") == 2
