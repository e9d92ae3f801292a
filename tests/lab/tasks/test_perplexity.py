"""Perplexity is the model's own loss, on texts that training does not see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks.perplexity import Perplexity
from dynattn.lab.tasks.texts import read


def _nothing() -> None: ...


def test_perplexity_of_nothing_is_refused(tiny_decoder: Path, texts: Path):
    with pytest.raises(ValueError, match="texts must have at least 2 tokens: of 1 none has"):
        Perplexity(tokens=1, texts=read(texts)).prepare(load(str(tiny_decoder)))


def test_perplexity_is_the_models_own_loss(tiny_decoder: Path, texts: Path):
    pretrained = load(str(tiny_decoder))
    task = Perplexity(items=1, tokens=100, block=33, texts=read(texts))
    data = task.prepare(pretrained)
    outcome = task.evaluate(pretrained, data, _nothing)
    (ids,) = data.payload
    assert ids.shape == (1, 100)
    assert outcome.scores is not None
    assert len(outcome.scores) == len(data.labels) == 3
    with torch.no_grad():
        loss = pretrained.model(input_ids=ids, labels=ids).loss.item()
    assert outcome.scores.mean() == pytest.approx(loss, rel=1e-5)  # 99 predictions in 3 blocks of 33


def test_blocks_to_train_on_are_full_and_of_other_texts(tiny_decoder: Path, many_texts: Path):
    pretrained = load(str(tiny_decoder))
    texts = read(many_texts)
    task = Perplexity(items=2, tokens=100, texts=texts)
    blocks = task.blocks(pretrained, task.prepare(pretrained))
    whole = [pretrained.processor(text.body)["input_ids"] for text in texts[2:]]
    assert len(blocks) == sum(len(ids) // 100 for ids in whole) > 20
    assert [block.tolist() for block in blocks[:2]] == [whole[0][:100], whole[0][100:200]]
