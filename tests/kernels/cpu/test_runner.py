"""What is said where the library refuses a call."""

from __future__ import annotations

import pytest
import torch

from dynattn.methods.nm import NM


def test_nonsense_is_refused_before_memory_is_touched(forward):
    x = torch.zeros(1, 1, 4, 8)
    method = NM(1, 2)
    object.__setattr__(method, "n", 3)
    with pytest.raises(RuntimeError, match="out of its range"):
        forward(x, x, x, method, "portable")


def test_more_memory_than_there_is(forward):
    huge = torch.zeros(1, 1, 1, 256).expand(1, 1, 2**40, 256)  # 1 TiB of rows, of which one is in memory
    with pytest.raises(MemoryError, match="no memory"):  # few queries would read the keys in place
        forward(torch.zeros(1, 1, 32, 256), huge, huge, NM(1, 2), "portable")
