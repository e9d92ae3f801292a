"""Weights that ask for gradients for a while."""

from __future__ import annotations

import pytest
import torch

from dynattn.nn.parameters import gradients


@pytest.mark.parametrize("wanted", [True, False])
def test_each_does_what_it_did_before(wanted: bool) -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    seen = []
    try:
        with gradients(model.parameters(), wanted):
            seen += [weight.requires_grad for weight in model.parameters()]
            raise ZeroDivisionError
    except ZeroDivisionError:
        seen += [weight.requires_grad for weight in model.parameters()]
    assert seen == [wanted, wanted, True, False]
