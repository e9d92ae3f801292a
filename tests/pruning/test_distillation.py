"""The terms of the loss, against their sums written out."""

from __future__ import annotations

import math

import pytest
import torch

from dynattn.pruning.distillation import Weights, feature_loss, logit_loss, ratio_loss, terms, token_loss

KEPT = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])


def test_logits():
    pruned, dense = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, -1.0]])
    total = 0.0
    for a, b in zip(pruned.tolist(), dense.tolist(), strict=True):
        p, q = ([math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in (a, b))
        total += sum(x * math.log(x / y) for x, y in zip(q, p, strict=True))
    assert float(logit_loss(pruned, dense)) == pytest.approx(total / 2, rel=1e-5)
    assert float(logit_loss(dense, dense)) == pytest.approx(0, abs=1e-6)


def test_tokens_count_only_those_kept():
    tokens, dense = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    total = sum(
        float((tokens[b, i] - dense[b, i]) @ (tokens[b, i] - dense[b, i])) / 3
        for b in range(2)
        for i in range(4)
        if KEPT[b, i]
    )
    assert float(token_loss(tokens, dense, KEPT)) == pytest.approx(total / 4, rel=1e-5)
    assert float(token_loss(tokens, dense, torch.zeros_like(KEPT))) == 0.0


def test_dropping_a_token_does_not_pay_by_itself():
    kept = KEPT.clone().requires_grad_()
    tokens = torch.randn(2, 4, 3, requires_grad=True)
    token_loss(tokens, torch.zeros(2, 4, 3), kept).backward()
    assert kept.grad is None
    assert tokens.grad is not None
    assert bool(((tokens.grad != 0).any(-1) == KEPT.bool()).all())


def test_ratio():
    second = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    gaps = [(0.7 - 0.75) ** 2, (0.7 - 0.25) ** 2, (0.49 - 0.25) ** 2, (0.49 - 0.0) ** 2]
    assert float(ratio_loss([KEPT, second], 0.7)) == pytest.approx(sum(gaps) / 4, rel=1e-5)


def test_all_terms_together():
    generator = torch.Generator().manual_seed(0)
    hidden, dense = torch.randn(2, 2, 6, 3, generator=generator)  # a class token, a register and four tokens
    logits = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator)
    found = terms(hidden, dense, [torch.ones(2, 4), KEPT], 0.7)
    assert float(found.task) == 0.0
    assert torch.equal(found.outputs, feature_loss(hidden[:, 0], dense[:, 0]))
    assert torch.equal(found.tokens, token_loss(hidden[:, 2:], dense[:, 2:], KEPT))
    assert torch.equal(found.ratio, ratio_loss([torch.ones(2, 4), KEPT], 0.7))
    headed = terms(hidden, dense, [KEPT], 0.7, logits=logits, task=torch.tensor(3.0))
    assert torch.equal(headed.outputs, logit_loss(*logits))
    expected = 1.0 * 3.0 + 0.5 * headed.outputs + 0.5 * headed.tokens + 2.0 * headed.ratio
    torch.testing.assert_close(headed.total(Weights()), expected)
    assert float(headed.total(Weights(task=1.0, outputs=0.0, tokens=0.0, ratio=0.0))) == 3.0


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        Weights(ratio=-1.0)
