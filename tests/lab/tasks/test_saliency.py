"""Saliency: the area under the curve by its definition, and pictures that hold their object."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("transformers")

from dynattn.lab.tasks.saliency import Saliency, area_under_roc


def test_area_under_roc_by_its_definition():
    draw = np.random.default_rng(0)
    scores, positive = draw.integers(0, 5, 60).astype(float), draw.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert area_under_roc(scores, positive) == pytest.approx(np.mean(pairs))


def test_saliency_pictures_hold_their_object_where_the_mask_says():
    pytest.importorskip("sklearn")
    small = Saliency(items=2, pixels=112)
    for picture, mask in small._draw():
        assert picture.shape == (112, 112, 3)
        rows, columns = np.nonzero(mask)
        assert 20 < mask.sum() < 28 * 28
        assert np.ptp(rows) < 28
        assert np.ptp(columns) < 28
    (one, _), (two, _) = small._draw()
    assert (one != two).any()
    other = SimpleNamespace(name="vit")
    with pytest.raises(ValueError, match="must be dinov2"):
        small.prepare(other)  # type: ignore[arg-type]
