"""Methods by name."""

from __future__ import annotations

import pytest

from dynattn import pruning, sparsity
from dynattn.sparsity import (
    CHESS,
    TEAL,
    WINA,
    BySite,
    DSnoT,
    Magnitude,
    NMActivations,
    NMWeights,
    RandomWeights,
    Sparsity,
    Wanda,
    find,
    parse,
    register,
)  # fmt: skip

METHODS = (
    Magnitude(0.25), NMWeights(2, 4), NMWeights(2, 4, "wanda", DSnoT()), Wanda(0.5), RandomWeights(0.5),
    RandomWeights(0.125, 7, "uniform"), NMActivations(8, 16), NMActivations(2, 4, 16, True), WINA(0.7), TEAL(1e-6),
    CHESS(0.5), Sparsity(mlp=CHESS(0.5), skip=("0.down",)),
    BySite((("11.o", WINA(0.7)), ("2.q", TEAL(0.5)), ("0.up", NMActivations(1, 2)), ("0.gate", NMActivations(1, 2)))),
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_names_come_back_and_are_no_others(method):
    assert parse(method.name) == method
    assert pruning.find(method.name) is None


def test_unknown_names_are_refused():
    assert find("nm-2-4") is None
    with pytest.raises(ValueError, match=r"sparsity.parse: name must be"):
        parse("nm-2-4")
    with pytest.raises(TypeError, match="must be a subclass"):
        register(int)  # pyright: ignore[reportArgumentType]
    assert sparsity.parse("magnitude-0.5") == Magnitude(0.5)
