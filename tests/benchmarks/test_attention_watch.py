"""Attention is seen by its operators, and what only looks like it is not."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import coverage
from tests.integrations.transformers.forms import HIDDEN, OTHER, SHOWN

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def watching() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("attention_watch").watching


@torch.no_grad()
def seen(watching: Any, model: torch.nn.Module, x: torch.Tensor) -> set[tuple[str, ...]]:
    with watching(model, coverage(model)) as watch:
        model(x)
    return watch.attending


@pytest.mark.parametrize("mode", ["float32", "bfloat16", "autocast", "train"])
@pytest.mark.parametrize("make", [*SHOWN, *HIDDEN], ids=lambda make: make.__name__)
def test_attention_is_seen(watching, make, mode):
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(2, 5, 8)
    if mode == "bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    if mode == "train":
        model.train()
    with torch.autocast("cpu", enabled=mode == "autocast"):
        found = seen(watching, model, x)
    assert {type(model).__name__} <= {kind for kinds in found for kind in kinds}


@pytest.mark.parametrize("make", OTHER, ids=lambda make: make.__name__)
def test_what_is_no_attention_is_not(watching, make):
    assert seen(watching, make().eval(), torch.randn(2, 5, 8)) == set()


def test_a_softmax_of_four_dimensions_is_seen_without_a_product(watching):
    class Deformable(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.softmax(-1).unsqueeze(-1) * x.unsqueeze(-2)).sum(-2)

    assert seen(watching, Deformable(), torch.randn(2, 3, 4, 5))


def test_a_softmax_over_channels_is_not(watching):
    assert not seen(watching, torch.nn.Softmax2d(), torch.randn(2, 3, 4, 5))
