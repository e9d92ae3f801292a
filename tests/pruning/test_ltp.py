"""Learned token pruning against loops that read like its definition."""

from __future__ import annotations

import pytest
import torch

from dynattn.integrations.transformers import register
from dynattn.pruning import LTP, parse
from tests.pruning.models import close, ends, inputs, make, walk, weights


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "dynattn:nm-1-2"])
@pytest.mark.parametrize("method", [LTP(0.12), LTP((0.05, 0.0, 0.1, 0.9))])
def test_hard_thresholds(method, implementation):
    register()
    model, given = make("bert"), inputs("bert")
    model.set_attn_implementation(implementation)
    with method.apply(model) as trace:
        first, last = ends(model, given)
    thresholds = method.of_layers(4)
    for sample, length in enumerate((17, 12, 5)):
        seen = []

        def choose(layer, places, before, seen=seen):
            seen.append(len(places))
            p, _ = weights(model, layer, before)  # [heads, tokens, tokens]
            if layer == 3:
                return places
            received = [float(p[:, :, column].mean()) for column in range(len(places))]
            return [place for place, of in zip(places, received, strict=True) if place == 0 or of > thresholds[layer]]

        close(last[sample, :length], walk(model, first[sample, :length], choose))
        assert trace.last.tokens[:, sample].tolist() == seen
    assert trace.last.tokens[-1, 0] < 17


def test_thresholds_rise_with_the_layer():
    assert LTP(0.01).of_layers(4) == pytest.approx((0.0025, 0.005, 0.0075, 0.01))
    assert LTP((0.1, 0.2)).of_layers(2) == (0.1, 0.2)


@pytest.mark.parametrize("method", [LTP(0.01), LTP(1e-7), LTP((0.001, 0.00025)), LTP(0)])
def test_names_round_trip(method):
    assert parse(method.name) == method


def test_errors():
    with pytest.raises(TypeError, match="must be a number"):
        LTP("0.1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="must be a number"):
        LTP(())
    with pytest.raises(ValueError, match="finite and at least 0"):
        LTP(-0.1)
    model = make("bert")
    with LTP((0.1, 0.2)).apply(model), pytest.raises(ValueError, match="the model has 4, the method 2"):
        model(**inputs("bert"))


def test_zero_prunes_nothing():
    model, given = make("vit"), inputs("vit")
    with torch.no_grad(), LTP(0).apply(model) as trace:
        model(**given)
    assert trace.last.survivors.all()
