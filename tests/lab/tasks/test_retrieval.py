"""Retrieval on tiny data: queries from passages, and passages to train on that no item is from."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.texts import read


def _nothing() -> None: ...


def test_retrieval_takes_its_queries_out_of_full_passages(tiny_encoder: Path, texts: Path):
    pretrained = load(str(tiny_encoder))
    task = Retrieval(items=4, tokens=64, queries=2, texts=read(texts))
    data = task.prepare(pretrained)
    passages, tokens = data.payload
    assert len(passages) == len(data.labels) == 4
    assert (tokens, data.length) == (64, 64)
    for passage in passages:
        assert len(passage.queries) == 2
        assert all(query not in passage.body for query in passage.queries)
        assert len(pretrained.processor(passage.body)["input_ids"]) >= 64
    outcome = task.evaluate(pretrained, data, _nothing)
    assert outcome.scores is not None
    assert outcome.scores.shape == (4,)
    # the mean over all rankings at random of 4 is 0.52; untrained embeddings still share words with their passage
    assert 0 < outcome.scores.mean() <= 1
    with pytest.raises(ValueError, match="at least 2 passages"):
        Retrieval(tokens=128, texts=read(texts)[:1], queries=25).prepare(pretrained)


def test_passages_to_train_on_are_of_texts_that_no_item_is_from(tiny_encoder: Path, many_texts: Path):
    pretrained = load(str(tiny_encoder))
    texts = read(many_texts)
    task = Retrieval(items=5, tokens=64, texts=texts)
    data = task.prepare(pretrained)
    pairs = task.pairs(pretrained, data)
    assert len(pairs) > 5
    held_out = {label.rpartition(" ")[0] for label in data.labels}
    rest = " ".join(text.body for text in texts if text.title not in held_out)
    kept = " ".join(text.body for text in texts if text.title in held_out)
    assert 0 < len(held_out) < len(texts)
    for query, document in pairs:
        assert query in rest
        assert query not in kept
        assert query not in document
