"""The exams of a model, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks import Outcome, Prepared, Task
from dynattn.lab.tasks.texts import read
from dynattn.lab.tune.exams import Exam
from dynattn.lab.tune.parts import Parts, parts
from dynattn.lab.tune.plan import Counts

COUNTS = Counts(4, 2, 20, 20, 6)


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
