"""A split is of whole data, without an example in both parts, and each class is spread evenly."""

from __future__ import annotations

import numpy as np
import pytest

from dynattn.lab.data.splits import stratified

LABELS = np.repeat([3, 7, 9], [40, 20, 10])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_every_class_has_its_share_in_both_parts(share: float) -> None:
    train, test = stratified(LABELS, share, seed=0)
    assert sorted([*train, *test]) == list(range(len(LABELS)))
    assert list(train) == sorted(train)
    assert list(test) == sorted(test)
    for label, count in ((3, 40), (7, 20), (9, 10)):
        assert (LABELS[test] == label).sum() == round(share * count)


def test_the_seed_decides() -> None:
    first, again, other = (stratified(LABELS, 0.25, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
