"""The script that times PoNet, in small."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dynattn.nn import Attention


def test_every_module_is_timed_and_told(script, monkeypatch, tmp_path):
    ponet = script("ponet")
    quick = partial(ponet.interleaved, rounds=2, min_sample=None)
    changes = {"RECORD": tmp_path / "ponet.json", "LENGTHS": (8,), "WIDTH": 24, "HEADS": 2, "interleaved": quick}
    for name, value in changes.items():
        monkeypatch.setattr(ponet, name, value)
    assert ponet.table() == "Not measured yet."
    ponet.measure()
    told = ponet.table()
    assert "| 8 tokens |" in told
    for name in ("sdpa", "attention", "nm-1-2", "efficient", "PoNet"):
        assert f"| {name} |" in told


def test_the_dense_module_is_the_module_with_every_pair(script):
    ponet = script("ponet")
    torch.manual_seed(0)
    module = Attention(ponet.WIDTH, ponet.HEADS, method=ponet.parse("dense"))
    x = torch.randn(1, 9, ponet.WIDTH)
    torch.testing.assert_close(ponet.Dense(module)(x), module(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="the page must hold"):
        ponet.rewritten("", ponet.START, ponet.table(), ponet.END, "ponet")
