"""The options of a call by name, and the method that they were made of."""

from __future__ import annotations

import pytest

from dynattn import NM
from dynattn.kernels.pattern import Pattern


@pytest.mark.parametrize("method", [NM(1, 2), NM(2, 4, window=8, sinks=3), NM(1, 4, stride=2)])
def test_a_pattern_holds_all_of_its_method(method: NM) -> None:
    pattern = Pattern.of(method, True, 0.25)
    assert pattern.method == method
    assert (pattern.causal, pattern.scale, pattern.dropout_p) == (True, 0.25, 0.0)
