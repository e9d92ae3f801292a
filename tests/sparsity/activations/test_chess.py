"""Neurons above their own thresholds: what is computed of an MLP, and what is spared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from dynattn.sparsity import CHESS, Calibrated, observing
from tests.pruning.structure.models import LAYERS, NEURONS, close, inputs, make, output
from tests.sparsity.oracle import masked, site

THRESHOLDS = {f"{layer}.{name}": (0.1 * (layer + 1),) for layer in range(LAYERS) for name in ("down", "out")}


def test_what_is_at_the_threshold_stays_and_so_does_a_nan():
    x = torch.tensor([[0.5, -0.6, 0.0, 0.4], [torch.nan, -0.5, torch.inf, -2.0]])
    keep = CHESS(0.5).keep(x, site(torch.ones(1, 4), [0.5, 0.7, 0.0, 3.0]))
    assert keep.tolist() == [[True, False, True, False], [True, False, True, False]]


def test_a_gated_mlp_computes_the_neurons_that_the_gate_asks_for():
    model, given = make("llama"), inputs("llama")
    gates: dict[int, torch.Tensor] = {}

    def rule(layer: int, projection: str, module: Any, x: torch.Tensor) -> torch.Tensor | None:
        if projection == "gate":
            gates[layer] = nn.functional.silu(x @ module.weight.T)
        return gates[layer].abs() >= 0.1 * (layer + 1) if projection == "down" else None

    with masked(model, "llama", rule):
        expected = output(model, given)
    seen = []
    with Calibrated(CHESS(0.5), THRESHOLDS).apply(model), observing(seen.append):
        close(output(model, given), expected)
    assert [one.site.name for one in seen] == [f"{layer}.{name}" for layer in range(LAYERS) for name in ("up", "down")]
    for up, down in zip(seen[::2], seen[1::2], strict=True):
        assert up.outputs
        assert not down.outputs
        assert torch.equal(up.keep, down.keep)
        assert 0.02 < float(up.keep.float().mean()) < 0.98
        assert not down.x[~down.keep].any()  # what is not asked for is not computed


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_an_mlp_without_a_gate_reads_the_neurons_that_are_large(kind):
    model, given = make(kind), inputs(kind)
    limits = {f"{layer}.out": tuple(torch.linspace(0, 0.4, NEURONS).tolist()) for layer in range(LAYERS)}

    def rule(layer: int, projection: str, module: Any, x: torch.Tensor) -> torch.Tensor | None:
        return x.abs() >= torch.linspace(0, 0.4, NEURONS) if projection == "out" else None

    with masked(model, kind, rule):
        expected = output(model, given)
    with Calibrated(CHESS(0.5), limits).apply(model) as sites:
        close(output(model, given), expected)
    assert [one.name for one in sites] == [f"{layer}.out" for layer in range(LAYERS)]
    assert not torch.allclose(output(model, given), expected)


def test_another_form_of_mlp_is_refused():
    model = make("llama")
    mlp = model.model.layers[1].mlp

    class Reversed(type(mlp)):
        def forward(self, x):
            return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))

    mlp.__class__ = Reversed
    with (
        pytest.raises(ValueError, match=r"must compute down\(act\(gate\(x\)\) \* up\(x\)\): Reversed computes"),
        Calibrated(CHESS(0.5), THRESHOLDS).apply(model),
    ):
        pass
    assert not any("forward" in vars(module) for module in model.modules())


def test_names_and_refusals():
    assert CHESS.from_name("chess-0.5") == CHESS(0.5)
    assert CHESS.from_name("chess-1") is None
    assert CHESS(0.5).at(0, "q") is None
    with pytest.raises(ValueError, match="CHESS: keep_ratio must be"):
        CHESS(0.0)
    with pytest.raises(TypeError, match="CHESS: keep_ratio must be a float"):
        CHESS(1)
