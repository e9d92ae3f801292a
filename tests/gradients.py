"""Gradients against differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def check(function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> None:
    """Raise where a gradient is not what float64 differences say, along a random direction of inputs and outputs.

    That takes a fraction of what each element by itself does. A single element that is wrong by 0.3% is seen all the
    same, since the tolerances are little above what differences round by, which is below 1e-10.
    """
    assert torch.autograd.gradcheck(function, tensors, rtol=1e-7, atol=2e-9, fast_mode=True)
