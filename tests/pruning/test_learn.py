"""Learning of thresholds: soft masks, what rises and falls, what is refused."""

from __future__ import annotations

import pytest
import torch

from dynattn.pruning import LTP, parse, pruned
from dynattn.pruning.learn import Soft, learn
from tests.pruning.models import close, ends, inputs, make, weights


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
