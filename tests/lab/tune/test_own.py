"""A task of the user's own decides, with its own items in each part, and a proof that cannot be is refused early."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks.own import Likelihoods, Scored
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tune import begin, own
from dynattn.lab.tune.clock import Clock
from dynattn.lab.tune.parts import parts
from dynattn.lab.tune.plan import Counts
from dynattn.lab.tune.settings import Settings
from dynattn.lab.tune.store import Store

COUNTS = Counts(search=1, search_second=1, prove=3, candidates=4)


def _ids(part: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(part)
    return [torch.randint(60, (1, 16), generator=draw) for _ in range(40)]


def _nats(pretrained, ids) -> float:
    return float(-pretrained.model(ids).logits[0, -1].log_softmax(-1).max())


def _make(pretrained, part):
    return Likelihoods(_ids(part), _nats)


@pytest.fixture(scope="module")
def pretrained(tiny_decoder):
    return load(str(tiny_decoder))


@pytest.fixture
def named(monkeypatch):
    """Make a function known by ``mine:make``."""

    def name(function):
        module = ModuleType("mine")
        module.make = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mine", module)
        return "mine:make"

    return name


def test_parts_have_as_many_items_as_the_plan_counts_and_entries_of_several(pretrained, named):
    made = parts(pretrained, None, None, COUNTS, named(_make))
    assert [exam.items for (exam,) in (made.search, *made.proofs)] == [8, 24, 24]
    (exam,) = made.proofs[0]
    assert (exam.entries, exam.portion(0, 1).items, exam.portion(2, 3).items) == (3, 8, 8)
    assert exam.forwards == len(exam.data.examples)
    first, second = (exams[0].data.payload[0][1] for exams in made.proofs)
    assert not torch.equal(first, second)
    whole = exam.outcome(pretrained, "sdpa", lambda: None).scores
    apart = [exam.portion(i, i + 1).outcome(pretrained, "sdpa", lambda: None).scores for i in range(exam.entries)]
    assert whole is not None
    torch.testing.assert_close(torch.tensor(whole), torch.cat([torch.tensor(each) for each in apart]))
    assert exam.of == "perplexity"


def test_inputs_are_those_of_the_users_calls(pretrained, named):
    (exam,) = parts(pretrained, None, None, COUNTS, named(_make)).search
    pretrained.model(**exam.inputs(5))


def test_a_task_for_another_kind_of_model_is_refused(pretrained):
    with pytest.raises(ValueError, match=r"takes encoder, and .* is of kind decoder"):
        own.exam(lambda pretrained, part: Retrieval(), pretrained, 0, COUNTS)


def test_what_is_no_task_is_refused(pretrained):
    with pytest.raises(ValueError, match=r"must give a dynattn\.lab\.tasks\.Task: got list"):
        own.exam(lambda pretrained, part: [1, 2], pretrained, 0, COUNTS)


def test_what_the_users_function_raises_is_told_with_its_line(pretrained):
    def broken(pretrained, part):
        return {}["questions"]

    with pytest.raises(
        ValueError, match=r"the items of part 2: it raised KeyError: 'questions' \(test_own\.py, line \d+"
    ):
        own.exam(broken, pretrained, 2, COUNTS)


def test_too_few_items_for_any_proof_are_refused_before_the_work(pretrained, named, tmp_path):
    task = named(lambda pretrained, part: Scored(_ids(part), lambda pretrained, ids: min(1.0, _nats(pretrained, ids))))
    settings = Settings("tiny", task=task, minutes=1000)
    with pytest.raises(ValueError, match=r"at least \d+ items for --max-loss 0.01, .* got 40 of own; have the task"):
        begin.begin(settings, None, pretrained, Store(tmp_path / "s.json", "k"), Clock(60000))
