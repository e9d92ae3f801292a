import pytest

from dynattn import Window
from tests.methods.oracle import Scores, agrees


@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (4, 0), (3, 2), (1, 30), (50, 0)])
def test_definition(window: int, sinks: int) -> None:
    def rule(s: Scores, offset: int) -> list[set[int]]:
        return [
            {j for j in range(len(row)) if -window < i + offset - j < window or j < sinks} for i, row in enumerate(s)
        ]

    agrees(Window(window, sinks), rule)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), ValueError, "window must be between 1"),
        ((4, -1), ValueError, "sinks must be between 0"),
        ((2**31,), ValueError, "window must be between 1"),
        ((4.0,), TypeError, "window must be an int"),
        ((4, True), TypeError, "sinks must be an int"),
    ],
)
def test_refusals(arguments: tuple, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"Window: {text}"):
        Window(*arguments)
