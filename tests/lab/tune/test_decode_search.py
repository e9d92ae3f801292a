"""In which order ways to decode are proved."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("rich")

from dynattn.lab.tune.decode_search import Held, Search


def _search(found: dict[str, tuple[float, float]]) -> Any:
    search: Any = object.__new__(Search)
    search._held = {name: [Held(loss, 1.0, True)] * 2 for name, (_, loss) in found.items()}
    search._speedups = {name: speedup for name, (speedup, _) in found.items()}
    return search


def test_after_the_fastest_comes_the_fastest_that_loses_a_good_deal_less():
    found = {"slow": (0.9, 0.0), "mild": (1.1, 0.001), "fastest": (1.5, 0.009), "like it": (1.4, 0.008)}
    assert _search(found)._in_turn() == ["fastest", "mild", "like it"]
    assert _search({**found, "mild": (1.1, 0.007)})._in_turn() == ["fastest", "like it", "mild"]
    assert _search({"slow": (0.9, 0.0)})._in_turn() == []
