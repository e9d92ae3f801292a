"""Settings along the knapsack's path over linear layers."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("pydantic")

from dynattn.lab.tune.linears.spread import spread
from dynattn.lab.tune.linears.units import Unit

UNITS = [Unit(layer, kind, (f"{layer}.{kind}",)) for layer in range(4) for kind in ("o", "down")]
SECONDS = {"dense": {"o": 1.0, "down": 4.0}, "mild": {"o": 0.8, "down": 3.0}, "strong": {"o": 0.99, "down": 2.0}}


def test_the_least_harmful_for_its_time_comes_first_and_slow_methods_never():
    harm = {
        "mild": {"o": [1.0, 2.0, 3.0, 4.0], "down": [0.1, 0.2, 0.3, 0.4]},
        "strong": {"o": [0.0] * 4, "down": [1.0, 2.0, 3.0, 4.0]},  # no faster in o, where it would harm nothing
    }
    found = spread(UNITS, SECONDS, harm)
    assert found[0] == {"0.down": "mild"}
    for milder, stronger in pairwise(found):
        assert set(milder) <= set(stronger)
        assert milder != stronger
    assert found[-1] == {
        **{f"{layer}.down": "strong" for layer in range(4)}, **{f"{layer}.o": "mild" for layer in range(4)},
    }  # fmt: skip


def test_of_kinds_that_nobody_looked_at_nothing_is_taken():
    found = spread(UNITS, SECONDS, {"mild": {"down": [1.0] * 4}})
    assert set(found[-1]) == {f"{layer}.down" for layer in range(4)}


def test_units_of_several_sites_are_taken_whole_and_nothing_faster_gives_nothing():
    unit = Unit(0, "q", ("0.q", "0.k", "0.v"))
    seconds = {"dense": {"q": 1.0}, "mild": {"q": 0.5}}
    assert spread([unit], seconds, {"mild": {"q": [1.0]}}) == [{"0.q": "mild", "0.k": "mild", "0.v": "mild"}]
    assert spread([unit], {"dense": {"q": 1.0}, "mild": {"q": 0.97}}, {"mild": {"q": [0.0]}}) == []
    assert spread([unit], {"dense": {"q": 1.0}}, {}) == []
