"""Weights of linear layers kept by input, so that an input that is left out spares one run of memory."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import nn


def input_major(weight: nn.Parameter, undo: ExitStack) -> None:
    """Store a weight by its inputs; its shape, its values and everything that computes with it stay the same.

    There is one copy of it at any time, besides the moment of the change. A weight that is stored in neither order
    stays as it is.

    Args:
        weight: (out, in).
        undo: stores it as before when it is closed, with the values that it has by then.
    """
    if weight.is_contiguous() and not weight.t().is_contiguous():
        undo.callback(_output_major, weight)  # before the change, so that no interruption can come between
        with torch.inference_mode(False), torch.no_grad():  # what inference mode makes could not be trained any more
            weight.data = weight.data.t().contiguous().t()


def _output_major(weight: nn.Parameter) -> None:
    with torch.inference_mode(False), torch.no_grad():
        weight.data = weight.data.contiguous()
