"""Pairs of queries and documents: the loss by its equation, gradients through sparse attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")


from dynattn.lab.finetune.pairs import PairModel, ranking_loss
from dynattn.lab.finetune.pretrained import fresh
from dynattn.lab.models import load


def test_ranking_loss_is_its_equation():
    draw = torch.Generator().manual_seed(0)
    q, d = (torch.nn.functional.normalize(torch.randn(3, 5, generator=draw), dim=-1) for _ in range(2))
    expected = 0.0
    for i in range(3):
        weights = [torch.exp(20 * (q[i] * d[j]).sum()) for j in range(3)]
        expected -= torch.log(weights[i] / sum(weights)) / 3
    assert ranking_loss(q, d).item() == pytest.approx(float(expected), rel=1e-5)


def test_training_reaches_queries_and_documents_through_sparse_attention(tiny_encoder: Path):
    model = PairModel(fresh(load(str(tiny_encoder)).model, "nm-1-2"))
    ids = torch.randint(2, 20, (4, 16), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model(given, {name: x.roll(1, 1) for name, x in given.items()})["loss"].backward()
    query = dict(model.named_parameters())["encoder.encoder.layer.0.attention.self.query.weight"].grad
    assert query is not None
    assert query.abs().max() > 0
