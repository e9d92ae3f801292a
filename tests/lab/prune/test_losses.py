"""Losses that can be differentiated, of the tasks that have one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.models import load
from dynattn.lab.prune.losses import differentiable
from dynattn.lab.tasks.needle import Needle
from dynattn.lab.tasks.perplexity import Perplexity
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.texts import read


def test_an_encoder_is_asked_to_find_documents(tiny_encoder: Path, many_texts: Path):
    pretrained, task = load(str(tiny_encoder)), Retrieval(items=4, tokens=32, per_text=2, texts=read(many_texts))
    loss = differentiable(task, task.prepare(pretrained), pretrained)()
    loss.backward()
    assert loss > 0
    assert pretrained.model.encoder.layer[0].attention.self.query.weight.grad.any()


def test_a_decoder_predicts_texts_that_no_item_is_from(tiny_decoder: Path, many_texts: Path):
    pretrained, task = load(str(tiny_decoder)), Perplexity(items=2, tokens=64, texts=read(many_texts))
    data = task.prepare(pretrained)
    loss = differentiable(task, data, pretrained)()
    ids = task.blocks(pretrained, data)[0].unsqueeze(0)
    assert loss == pretrained.model(input_ids=ids, labels=ids).loss


def test_other_tasks_have_none(tiny_decoder: Path, many_texts: Path):
    pretrained = load(str(tiny_decoder))
    task = Perplexity(items=2, tokens=64, texts=read(many_texts))
    with pytest.raises(ValueError, match="gradient flow must have a loss: the task needle"):
        differentiable(Needle(), task.prepare(pretrained), pretrained)
