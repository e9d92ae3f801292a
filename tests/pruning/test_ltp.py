"""Learned token pruning against loops that read like its definition."""

from __future__ import annotations

import pytest
import torch

from dynattn.integrations.transformers import register
from dynattn.pruning import LTP, parse, pruned
from dynattn.pruning.learn import Soft, learn
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


def test_soft_mask():
    """One layer's output is multiplied by the sigmoid, and the share kept is its mean over tokens."""
    model, given = make("bert", layers=2), inputs("bert")
    soft = Soft(LTP(0.1), 2, temperature=0.02)
    with torch.no_grad(), pruned(model, soft.course):
        first, _ = ends(model, given)
    layer = model.encoder.layer[0]
    expected = []
    for sample, length in enumerate((17, 12, 5)):
        before = first[sample, :length]
        p, _ = weights(model, 0, before)
        mask = torch.sigmoid((p.mean((0, 1)) - 0.05) / 0.02)
        mask[0] = 1
        close(soft.masks[0][0][sample, :length], mask)
        expected.append(mask)
        with torch.no_grad(), pruned(model, soft.course):
            alone = model.encoder(before[None]).last_hidden_state[0]
        with torch.no_grad():
            close(alone, model.encoder.layer[1](layer(before[None]) * mask[:, None])[0])
        fading = Soft(LTP(0.1), 2, temperature=0.02, zero_pruned=True)
        with torch.no_grad(), pruned(model, fading.course):
            close(model.encoder(before[None]).last_hidden_state[0], alone * mask[:, None])
    soft.masks = soft.masks[:1]
    assert float(soft.kept()) == pytest.approx(float(torch.cat(expected).mean()), rel=1e-5)


def test_learning_raises_and_lowers_thresholds():
    model, given = make("bert"), inputs("bert")
    target = model(**given).last_hidden_state[:, 0].detach()
    state = {name: weight.clone() for name, weight in model.state_dict().items()}

    def loss(batch):
        return (model(**batch).last_hidden_state[:, 0] - target).square().mean()

    start = LTP(0.08)
    cheap, dear = (
        learn(model, loss, [given] * 15, start=start, temperature=0.02, strength=strength, rate=0.1)
        for strength in (1e-6, 10.0)
    )
    assert cheap.losses[-1] < cheap.losses[0]
    assert dear.kept[-1] < dear.kept[0]
    assert dear.kept[-1] < cheap.kept[-1]
    assert all(a > b for a, b in zip(dear.method.thresholds, start.of_layers(4), strict=False))
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert parse(dear.method.name) == dear.method


def test_learning_trains_weights_that_are_given():
    model, given = make("bert"), inputs("bert")
    weight = model.encoder.layer[1].output.dense.weight
    before, other = weight.detach().clone(), model.encoder.layer[0].output.dense.weight.detach().clone()
    learn(model, lambda batch: model(**batch).last_hidden_state.square().mean(), [given], start=LTP(0.08),
          temperature=0.02, strength=0.1, parameters=[weight])  # fmt: skip
    assert not torch.equal(weight, before)
    assert torch.equal(model.encoder.layer[0].output.dense.weight, other)


def test_learning_refuses():
    model = make("bert")
    with pytest.raises(ValueError, match="temperature must be positive"):
        learn(model, lambda batch: batch, [], start=LTP(0.1), temperature=0, strength=1)
    with pytest.raises(ValueError, match="must start above 0"):
        learn(model, lambda batch: batch, [], start=LTP(0.0), temperature=1, strength=1)
    with pytest.raises(ValueError, match="batches must hold at least one"):
        learn(model, lambda batch: batch, [], start=LTP(0.1), temperature=1, strength=1)
    with pytest.raises(ValueError, match="loss must run the model"):
        learn(model, lambda batch: torch.zeros(()), [1], start=LTP(0.1), temperature=1, strength=1)
    with pytest.raises(TypeError, match="start must be LTP"):
        learn(model, lambda batch: batch, [], start=0.1, temperature=1, strength=1)  # type: ignore[arg-type]
