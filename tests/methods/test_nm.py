import dataclasses

import pytest

from dynattn import NM
from dynattn.methods import parse


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("nm-2-4", NM(2, 4)),
        ("nm-1-2-w64", NM(1, 2, window=64)),
        ("nm-1-2-s4", NM(1, 2, sinks=4)),
        ("nm-1-32-w64-s4", NM(1, 32, window=64, sinks=4)),
        ("nm-1-2-x16", NM(1, 2, stride=16)),
        ("nm-2-4-x3-w64-s4", NM(2, 4, window=64, sinks=4, stride=3)),
        ("dense", NM(1, 1)),
    ],
)
def test_names_round_trip(name: str, method: NM) -> None:
    assert method.name == name
    assert parse(name) == method


def test_every_n_equal_m_is_dense() -> None:
    assert NM(4, 4).name == "dense"
    assert NM(4, 4, window=8).keeps_everything
    assert NM(4, 4, stride=16).name == "dense"
    assert parse("nm-4-4") == NM(4, 4)


@pytest.mark.parametrize(
    "name", ["", "nm", "nm-2", "nm-2-4-x", "nm-2-4-s4-w64", "nm-2-4-w4-x2", "nm--2-4", "Dense", " nm-2-4"]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="parse: name must be"):
        parse(name)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((3, 2), "n must be between 1 and m"),
        ((0, 2), "n must be between 1 and m"),
        ((1, 0), "m must be between 1 and 32"),
        ((1, 33), "m must be between 1 and 32"),
        ((1, 2, -1), "window must be between 0"),
        ((1, 2, 0, -1), "sinks must be between 0"),
        ((1, 2, 2**31), "window must be between 0"),
        ((1, 2, 0, 0, 0), "stride must be between 1 and 64"),
        ((1, 2, 0, 0, 65), "stride must be between 1 and 64"),
        ((1, 5, 0, 0, 52), "use a stride of at most 51"),
    ],
)
def test_values_out_of_range_are_refused(arguments: tuple, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NM(*arguments)


@pytest.mark.parametrize("arguments", [(1.0, 2), ("1", 2), (True, 2), (1, 2, None), (1, 2, 0, 0, 2.0)])
def test_wrong_types_are_refused(arguments: tuple) -> None:
    with pytest.raises(TypeError, match="must be an int"):
        NM(*arguments)


def test_is_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NM(2, 4).n = 1  # type: ignore[misc]
    assert len({NM(2, 4), NM(2, 4), NM(1, 2)}) == 2
