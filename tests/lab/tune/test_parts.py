"""The exams of a model, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks import Outcome, Prepared, Task
from dynattn.lab.tasks.texts import read
from dynattn.lab.tune import parts as module
from dynattn.lab.tune import queries
from dynattn.lab.tune.begin import _few
from dynattn.lab.tune.exams import Exam
from dynattn.lab.tune.parts import Parts, parts
from dynattn.lab.tune.plan import Counts
from dynattn.lab.tune.settings import Settings

COUNTS = Counts(4, 2, 20, 6)


@dataclass(frozen=True)
class _Own(Task):
    name: ClassVar[str] = "own"
    kinds = ("decoder",)
    metric = "score"
    higher_is_better = True

    def prepare(self, pretrained) -> Prepared:
        raise NotImplementedError

    def evaluate(self, pretrained: Any, data, advance) -> Outcome:
        raise NotImplementedError


def _exam() -> Exam:
    """Made anew, with items that hold tensors: whether two are equal cannot be told."""
    items = [{"input_ids": torch.arange(8)[None], "label": torch.arange(2)} for _ in range(3)]
    return Exam(_Own(), Prepared(("a", "b", "c"), 3, (), 8, "", items))


def test_tries_on_data_of_their_own_are_told_apart_whatever_their_items_hold():
    made = Parts((_exam(),), ((_exam(),), (_exam(),)))
    assert [made.data(number) for number in (0, 1)] == [0, 1]


def test_tries_on_the_same_data_share_what_the_dense_model_scores():
    exams = (_exam(),)
    assert [Parts((_exam(),), (exams, exams)).data(number) for number in (0, 1)] == [0, 0]


@pytest.mark.parametrize("task", [0, 1])
def test_pieces_of_few_texts_are_called_so_in_both_tasks(tiny_decoder, texts, task):
    proof = parts(load(str(tiny_decoder)), read(texts), 64, COUNTS, None).proofs[0][task]
    assert "pieces, drawn by chance from 2 texts, and speaking of these alone, of 64 tokens" in proof.data.summary


def test_numbers_are_scored_by_the_forwards_of_their_texts(tiny_decoder, many_texts):
    made = parts(load(str(tiny_decoder)), read(many_texts), 64, COUNTS, None)
    for exams in (made.search, made.proofs[0]):
        text, numbers = exams
        assert (text.beside, numbers.beside) == (False, True)
        assert numbers.data.payload is text.data.payload
        assert text.items == numbers.items == text.entries == numbers.entries
    assert made.proofs[0] is made.proofs[1]


def test_the_item_of_an_encoder_is_the_text(tiny_encoder, many_texts, monkeypatch):
    """And all sentences of a text are in the same part."""
    items = queries.items
    monkeypatch.setattr(queries, "items", lambda data, _: items(data, 5))
    made = _retrieval(tiny_encoder, many_texts, monkeypatch, fewest=4)
    (searched,), (proved,) = made.search, made.proofs[0]
    assert (searched.items, proved.items) == (2, 8)
    titles = [{label.split(".txt")[0] for label in exam.data.labels} for exam in (searched, proved)]
    assert not titles[0] & titles[1]
    for exam in (searched, proved):
        of_labels = {label.split(".txt")[0]: group for label, group in zip(exam.data.labels, exam.groups, strict=True)}
        assert len(set(of_labels.values())) == exam.items == len(of_labels)
    assert made.proofs[0] is made.proofs[1]
    assert "8 texts" in proved.data.summary


def test_where_texts_are_few_the_item_of_an_encoder_is_a_passage_and_that_is_said(tiny_encoder, texts, monkeypatch):
    made = _retrieval(tiny_encoder, texts, monkeypatch, fewest=4)
    (searched,), (proved,) = made.search, made.proofs[0]
    assert proved.items == len(proved.data.payload[0]) >= 4
    assert "passages, drawn by chance from 2 texts, and speaking of these alone" in proved.data.summary
    bodies = [{passage.body for passage in exam.data.payload[0]} for exam in (searched, proved)]
    assert not bodies[0] & bodies[1]


def test_too_few_passages_are_refused(tiny_encoder, texts):
    with pytest.raises(ValueError, match="must hold at least 20 passages of 64 tokens: 1 texts hold"):
        parts(load(str(tiny_encoder)), read(texts)[:1], 64, COUNTS, None)


def _retrieval(model: Path, folder: Path, monkeypatch, fewest: int) -> Parts:
    monkeypatch.setattr(module, "FEWEST", fewest)
    return parts(load(str(model)), read(folder), 32, COUNTS, None)


def test_the_item_of_speech_is_the_recording(monkeypatch):
    sound = [{"input_features": torch.zeros(1, 2, 8), "decoder_input_ids": torch.zeros(1, 5)} for _ in range(10)]
    every = Prepared(tuple(map(str, range(10))), 10, (), 4, "", sound, 2.0)
    monkeypatch.setattr(module.Speech, "prepare", lambda *_: every)
    made = parts(cast(Any, SimpleNamespace(kind="speech", name="mine")), None, None, COUNTS, None)
    assert made.search[0].items + made.proofs[0][0].items == 10
    few = _few(Settings("whisper"), made.proofs[0])
    assert few is not None
    assert "must have at least 15 items" in few
    assert "got 7 of speech; give recordings of your own by --task" in few
    assert made.proofs[0][0].items == made.proofs[0][0].entries == 7
    assert made.proofs[0] is made.proofs[1]
