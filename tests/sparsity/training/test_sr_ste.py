"""SR-STE against a training that is written out, with several optimizers."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dynattn.sparsity.training import SRSTE
from tests.sparsity.training.plain import batches, kept_by_loops, learn, network, trained

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
    "adam, one by one": partial(torch.optim.Adam, lr=0.02, foreach=False),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01),
}
DECAY = 0.3


def _factors(step, weight):
    return kept_by_loops(weight, 2, 4).double()


def _pulled(weight, factor):
    weight.grad += DECAY * (1 - factor) * weight


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_training_written_out(name):
    data, optimizer = batches(6), OPTIMIZERS[name]
    model = network()
    steps = optimizer(model.parameters())
    with SRSTE(2, 4, DECAY).train(model, steps):
        learn(model, steps, data)
    torch.testing.assert_close(list(model.parameters()), trained(data, optimizer, _factors, _pulled))  # type: ignore[call-overload]


def test_decoupled_goes_around_the_optimizer():
    data, optimizer, rate = batches(6), OPTIMIZERS["adamw"], 0.02

    def shrunk(weight, factor):
        weight -= rate * DECAY * (1 - factor) * weight

    model = network()
    steps = optimizer(model.parameters())
    with SRSTE(2, 4, DECAY, decoupled=True).train(model, steps):
        learn(model, steps, data)
    found, coupled = list(model.parameters()), trained(data, optimizer, _factors, _pulled)
    torch.testing.assert_close(found, trained(data, optimizer, _factors, shrunk))  # type: ignore[call-overload]
    assert not torch.allclose(found[0], coupled[0])


def test_several_backward_passes_of_a_step_pull_once():
    data = batches(2)
    models = [network(), network()]
    for model, parts in zip(
        models, ([data[0]], [(x[None], y[None]) for x, y in zip(*data[0], strict=True)]), strict=True
    ):
        steps = torch.optim.SGD(model.parameters(), lr=0.1)
        with SRSTE(2, 4, DECAY).train(model, steps):
            for x, wanted in parts:
                ((model(x) - wanted).square().mean() / len(parts)).backward()
            steps.step()
    torch.testing.assert_close(list(models[0].parameters()), list(models[1].parameters()))


def test_keeping_all_is_dense_training():
    data = batches(3)
    models = [network(), network()]
    for model in models:
        steps = torch.optim.AdamW(model.parameters(), lr=0.02)
        if model is models[0]:
            with SRSTE(4, 4, DECAY).train(model, steps) as training:
                learn(model, steps, data)
            assert training.changed == [0, 0, 0]
        else:
            learn(model, steps, data)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_names_and_refusals():
    for recipe in (SRSTE(2, 4), SRSTE(1, 8, 0.001), SRSTE(2, 4, 0.0, True)):
        assert SRSTE.from_name(recipe.name) == recipe
    assert SRSTE(2, 4, 1e-5, True).name == "sr-ste-2-4-l0.00001-decoupled"
    assert SRSTE.from_name("sr-ste-2") is None
    with pytest.raises(ValueError, match="SRSTE: decay must be from 0 to 1"):
        SRSTE(2, 4, 2.0)
    with pytest.raises(TypeError, match="SRSTE: decay must be a float"):
        SRSTE(2, 4, 0)
    with pytest.raises(ValueError, match="n must be from 1 to m"):
        SRSTE(4, 2)
