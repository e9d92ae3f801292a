"""A backend is one class and one line: the example of CONTRIBUTING runs, and agrees with the reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import dynattn
from dynattn import NM
from dynattn import backends as package
from dynattn.backends import Backend

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The example's class, added under a name of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.S | re.M)
    (block,) = (block for block in blocks if "(Backend)" in block)
    names: dict[str, Any] = {}
    exec(compile(block, GUIDE.name, "exec"), names)
    backend = names["SDPA"]()
    monkeypatch.setattr(type(backend), "name", "example")
    monkeypatch.setitem(package._BACKENDS, "example", backend)
    return backend


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("q_len", "kv_len"), [(9, 9), (1, 1), (3, 9)])
def test_the_guides_example_agrees_with_the_reference(
    example: Backend, q_len: int, kv_len: int, kv_heads: int, causal: bool
) -> None:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, n, length, 8) for n, length in ((4, q_len), (kv_heads, kv_len), (kv_heads, kv_len))
    )
    options: dict[str, Any] = {"causal": causal, "scale": -0.3}
    if causal:
        why = "it aligns causal masks top-left" if q_len != kv_len else "with causal masks a NaN"
        with pytest.raises(RuntimeError, match=f"'example' cannot run this: {why}"):
            dynattn.attention(query, key, value, NM(1, 1), backend="example", **options)
        return
    out = dynattn.attention(query, key, value, NM(1, 1), backend="example", **options)
    torch.testing.assert_close(out, dynattn.attention(query, key, value, NM(1, 1), backend="reference", **options))
    assert dynattn.explain(query, key, value, NM(1, 1), backend="example", **options).backend == "example"
