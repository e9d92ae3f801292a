"""Pictures keep their colours and their sides when they are resized."""

from __future__ import annotations

import numpy as np

from dynattn.lab.data.samples import resize


def test_a_picture_of_one_colour_stays_one() -> None:
    picture = np.broadcast_to(np.array([10, 200, 255], np.uint8), (30, 50, 3))
    small = resize(picture, 8)
    assert small.shape == (8, 8, 3)
    assert small.dtype == np.uint8
    assert (small == picture[0, 0]).all()


def test_left_stays_left_and_top_stays_top() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20, :30, 0] = 255
    small = resize(picture, 4)[..., 0]
    assert (small[0, 0], small[0, 3], small[3, 0], small[3, 3]) == (255, 0, 0, 0)
    assert resize(picture, 60).shape == (60, 60, 3)
