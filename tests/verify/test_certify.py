"""Whole models: their bounds hold, a certified radius stands up to what is tried against it, and training grows it."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynattn import NM, TopK, verify
from dynattn.lab.lra.model import Config, Encoder
from dynattn.verify import Box
from tests.verify.sampling import members


def encoder(method=NM(1, 2), pool: str = "mean", layers: int = 1) -> Encoder:
    torch.manual_seed(0)
    sizes = Config(vocabulary=12, classes=3, length=9, width=8, layers=layers, heads=2, mlp=12, pool=pool)
    model = Encoder(sizes, method)
    nn.init.normal_(
        model.tokens.weight
    )  # the model's own 0.02 makes bounds of its first normalisation 50 times as wide
    return model.double().eval()


def ids() -> torch.Tensor:
    return torch.randint(1, 12, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", [None, NM(1, 2), NM(2, 4, window=2), TopK(k=3)], ids=str)
@pytest.mark.parametrize("pool", ["mean", "cls"])
@torch.no_grad()
def test_the_bounds_of_a_model_hold(method, pool):
    model, given = encoder(method, pool, layers=2), ids()
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[1, 6:] = False
    found = verify.bounds(model, given, mask, at=model.tokens, radius=0.002, words=[3, -1])["logits"]
    around = model.tokens(given)
    moves = torch.zeros_like(around)
    moves[:, [3, 8]] = 0.002
    for (moved,) in members([Box.around(around, moves)], 30):
        hook = model.tokens.register_forward_hook(lambda *_, moved=moved: moved)
        out = model(given, mask)["logits"]
        hook.remove()
        assert found.holds(out, 1e-12)
    exact = verify.bounds(model, given, mask, at=model.tokens, radius=0.0)["logits"]
    torch.testing.assert_close(exact.center, model(given, mask)["logits"])
    assert exact.radius.max() < 1e-12


@torch.no_grad()
def test_a_certified_radius_stands_up_to_attacks_and_a_larger_one_is_not_certified():
    model, given = encoder(), ids()
    labels = model(given)["logits"].argmax(-1)
    options = {"at": model.tokens, "head": model.classifier[-1], "labels": labels}
    radius = verify.radius(model, given, **options, most=0.01, steps=14)
    assert (radius > 0).all()
    around = model.tokens(given)
    for (moved,) in members([Box.around(around, radius[:, None, None])], 200):
        hook = model.tokens.register_forward_hook(lambda *_, moved=moved: moved)
        assert torch.equal(model(given)["logits"].argmax(-1), labels)
        hook.remove()
    one = verify.radius(model, given, **options, words=[2], most=0.01, steps=14)
    assert (one >= radius).all()
    assert (one > radius).any()
    wrong = verify.radius(model, given, **{**options, "labels": (labels + 1) % 3})
    assert (wrong == 0).all()


@pytest.mark.parametrize("method", [None, NM(1, 2)], ids=str)
@torch.no_grad()
def test_linear_bounds_of_a_model_hold_and_are_tighter(method):
    model, given = encoder(method, layers=2), ids()[:1]
    options = {"at": model.tokens, "radius": 0.002, "words": [3]}
    plain = verify.bounds(model, given, **options)["logits"]
    found = verify.bounds(model, given, **options, linear=True)["logits"]
    around = model.tokens(given)
    moves = torch.zeros_like(around)
    moves[:, 3] = 0.002
    for (moved,) in members([Box.around(around, moves)], 15):
        hook = model.tokens.register_forward_hook(lambda *_, moved=moved: moved)
        assert found.holds(model(given)["logits"], 1e-12)
        hook.remove()
    assert (found.lower >= plain.lower - 1e-12).all()
    assert (found.upper <= plain.upper + 1e-12).all()
    assert found.radius.sum() < 0.5 * plain.radius.sum()


@torch.no_grad()
def test_linear_bounds_certify_larger_radii_that_stand_up_to_attacks():
    model, given = encoder(), ids()[:1]
    labels = model(given)["logits"].argmax(-1)
    options = {"at": model.tokens, "head": model.classifier[-1], "labels": labels, "words": [3], "most": 0.1}
    plain = verify.radius(model, given, **options, steps=4)
    linear = verify.radius(model, given, **options, steps=4, linear=True)
    assert (linear > 1.2 * plain).all()
    around = model.tokens(given)
    moves = torch.zeros_like(around)
    moves[:, 3] = linear[:, None]
    for (moved,) in members([Box.around(around, moves)], 15):
        hook = model.tokens.register_forward_hook(lambda *_, moved=moved: moved)
        assert torch.equal(model(given)["logits"].argmax(-1), labels)
        hook.remove()


@torch.no_grad()
def test_texts_of_a_batch_move_each_by_itself():
    """A module that mixes texts: its bounds hold for all that they may do together."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(12, 4).double()

        def forward(self, given):
            x = self.tokens(given)
            return x - x.mean(0, keepdim=True)

    model = Mixed().eval()
    given = torch.tensor([[1, 2], [1, 2]])
    found = verify.bounds(model, given, at=model.tokens, radius=0.1, linear=True)
    torch.testing.assert_close(found.radius, torch.full_like(found.radius, 0.1))


@torch.no_grad()
def test_differences_of_logits_together_are_tighter_than_their_boxes():
    model, given = encoder(), ids()
    labels = model(given)["logits"].argmax(-1)
    head = model.classifier[-1]
    hidden = Box.around(torch.randn(4, 12, dtype=torch.float64), 0.3)
    together = verify.margins(hidden, head, labels)
    logits = F.linear(hidden, head.weight, head.bias)
    apart = logits.lower.gather(1, labels[:, None]) - logits.upper
    others = ~F.one_hot(labels, 3).bool()
    assert (together[others] >= apart[others]).all()
    assert (together[others] > apart[others]).any()
    for (its,) in members([hidden], 50):
        out = head(its)
        assert ((out.gather(1, labels[:, None]) - out)[others] >= together[others] - 1e-12).all()


def test_the_worst_loss_is_the_loss_where_nothing_moves_and_training_lowers_it():
    model, given = encoder(), ids()
    labels = torch.tensor([0, 1, 2, 1])
    options = {"at": model.tokens, "head": model.classifier[-1], "labels": labels}
    still = verify.worst_loss(model, given, **options, radius=0.0)
    torch.testing.assert_close(still, model(given, labels=labels)["loss"])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = verify.worst_loss(model, given, **options, radius=0.01)
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > float(still.detach())
    assert losses[-1] < losses[0] - 0.1
    given, options = given[:1], options | {"labels": labels[:1], "radius": 0.01, "words": [2]}
    linear = verify.worst_loss(model, given, **options, linear=True)
    assert linear.detach() <= verify.worst_loss(model, given, **options).detach() + 1e-12
    linear.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_wrong_calls_are_refused_and_leave_nothing_behind():
    model, given = encoder(), ids()
    with pytest.raises(ValueError, match="model must be in eval mode"):
        verify.bounds(model.train(), given, at=model.tokens, radius=0.1)
    model.eval()
    with pytest.raises(RuntimeError, match="at must be a module that the model calls"):
        verify.bounds(model, given, at=nn.Linear(1, 1), radius=0.1)
    with pytest.raises(ValueError, match=r"words must lie in the text of 9 tokens: got \[9\]"):
        verify.bounds(model, given, at=model.tokens, radius=0.1, words=[9])
    with pytest.raises(ValueError, match="lower must not exceed upper"):
        verify.bounds(model, given, at=model.tokens, radius=-0.1)
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"most must be above 0 and steps at least 1: got 0\.0, 10"):
        verify.radius(model, given, at=model.tokens, head=model.classifier[-1], labels=labels, most=0.0)
    with pytest.raises(ValueError, match="head must be called once"):
        verify.radius(model, given, at=model.tokens, head=nn.Linear(1, 1), labels=labels)
    assert not model.tokens._forward_hooks
    assert not model.classifier[-1]._forward_pre_hooks
    assert isinstance(model(given)["logits"], torch.Tensor)
