"""What is said of a tuned assignment beside the best single method: what is so, in each of the cases."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("rich")

from dynattn.lab.tune.results import Rival
from dynattn.lab.tune.terminal import against


def _rival(speedup: float, loss: float, proved: bool) -> Rival:
    bound = 0.009 if proved else 0.02
    return Rival(method="nm-1-2", speedup=speedup, loss=loss, tuned=0.004, bound=bound, limit=0.01, proved=proved)


@pytest.mark.parametrize(
    ("rival", "said"),
    [
        (_rival(1.1, 0.006, proved=True), "the tuned one is at least as fast and loses no more."),
        (_rival(1.1, 0.002, proved=True), "it is faster and loses more, which the limit allows."),
        (
            _rival(1.1, 0.002, proved=False),
            "the single method is not proved, and the loss is only known to be below 2.00%.",
        ),
        (_rival(1.3, 0.006, proved=False), "that it keeps the limit of 1.00% is not proved by these items"),
        (_rival(1.3, 0.002, proved=False), "the tuned one loses no less"),
        (_rival(1.3, 0.006, proved=True), "faster and keeps the limit, too: the search did not foresee that."),
        (_rival(1.3, 0.002, proved=True), "the single method is better on these items"),
    ],
)
def test_which_of_the_two_is_better_is_said(rival, said):
    text = against(rival, 1.2)
    assert said in text
    assert text.startswith(
        f"The best single method for all heads, 1:2, makes the model {rival.speedup:.2f} times as fast"
    )
