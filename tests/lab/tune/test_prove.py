"""A run's claims are wrong in at most one case of twenty, over all looks and tries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.tasks import Outcome, Prepared, Task
from dynattn.lab.tune import prove as module
from dynattn.lab.tune.exams import FEWEST, Exam, bound_of, decided, proof_of
from dynattn.lab.tune.prove import prove
from dynattn.lab.tune.store import Store

LIMIT = 0.05
ENTRIES, EACH = 6, 8


@dataclass(frozen=True)
class _Nats(Task):
    name: ClassVar[str] = "nats"
    kinds = ("decoder",)
    metric = "NLL, nats"
    higher_is_better = False

    def prepare(self, pretrained) -> Prepared:
        raise NotImplementedError

    def evaluate(self, pretrained: Any, data, advance) -> Outcome:
        return Outcome(np.concatenate([each[pretrained.tuned] for each in data.payload]), None)


class _Ranks(_Nats):
    metric = "MRR@10"
    higher_is_better = True


class _Model:
    tuned = 0


class _Once:
    """A store that keeps nothing."""

    def once(self, name, find):
        return find()


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    """The model is a number that says whether it is tuned."""

    def outcome(self, pretrained: Any, implementation, advance):
        pretrained.tuned = int(implementation != "sdpa")
        return self.task.evaluate(pretrained, self.data, advance)

    monkeypatch.setattr(Exam, "outcome", outcome)
    monkeypatch.setattr(module, "set_assignment", lambda pretrained, assignment: "tuned")


def _exam(draw: np.random.Generator, loss: float, second: bool = False, noise: float = 0.03) -> Exam:
    """Pairs of dense and tuned scores, whose differences have this mean and are lopsided."""
    payload = []
    for _ in range(ENTRIES):
        dense = draw.normal(3, 0.5, EACH)
        payload.append((dense, dense + np.log1p(loss) + noise * (draw.exponential(1, EACH) - 1)))
    labels = tuple(map(str, range(ENTRIES * EACH)))
    return Exam(_Nats(), Prepared(labels, ENTRIES, (), 8, "", payload), second)


def _try(number: int, *exams: Exam, in_time=lambda: True):
    worst = [exam.worst(np.array([0.1]), np.zeros(1), LIMIT) for exam in exams]
    return prove(number, {"m": ("nm-1-2",)}, worst, exams, _Model(), LIMIT, _Once(), lambda: None, in_time)  # type: ignore[arg-type]


def test_a_loss_at_the_limit_is_called_smaller_in_at_most_one_run_of_twenty():
    draw = np.random.default_rng(0)
    runs = 200
    wrong = sum(any(_try(number, _exam(draw, LIMIT)).holds for number in (0, 1)) for _ in range(runs))
    assert wrong <= _at_most(runs)


def _texts(draw: np.random.Generator, loss: float, blocks: int = 16, texts: int = 60) -> Exam:
    """Blocks whose losses differ between texts, ``loss`` in the mean, and hardly within one."""
    dense = draw.normal(3, 0.5, (texts, blocks))
    lost = np.log1p(loss) * draw.exponential(1, (texts, 1))
    payload = list(zip(dense, dense + lost + draw.normal(0, 0.1 * np.log1p(loss), dense.shape), strict=True))
    labels = tuple(map(str, range(texts * blocks)))
    return Exam(_Nats(), Prepared(labels, texts, (), 8, "", payload), clustered=True)


def _at_most(runs: int) -> float:
    return 0.05 * runs + 2 * (0.05 * 0.95 * runs) ** 0.5


def _pair(exam: Exam, which: int) -> tuple[Outcome, Outcome]:
    """The outcome of the dense model, 0, or of the tuned one, 1, and the dense one's."""
    dense, own = (Outcome(each, None) for each in exam.data.payload[0][0])
    return (dense, own)[which], dense


def _scores(exam: Exam) -> tuple[np.ndarray, np.ndarray]:
    """(items,) of the dense model and of the tuned one."""
    dense, own = (Outcome(np.concatenate([each[k] for each in exam.data.payload]), None) for k in (0, 1))
    return exam.scores(dense, dense), exam.scores(own, dense)


@pytest.mark.parametrize("clustered", [True, False])
def test_blocks_of_a_text_that_lose_alike_make_no_more_false_claims(clustered):
    """As independent items they do: a text that loses little looks like sixteen of them."""
    draw = np.random.default_rng(5)
    runs, wrong = 1000, 0
    for _ in range(runs):
        exam, search = (replace(_texts(draw, LIMIT, texts=texts), clustered=clustered) for texts in (60, 4))
        (dense, own), (search_dense, search_own) = _scores(exam), _scores(search)
        proof = exam.proof(LIMIT, 1, exam.worst(search_own, search_dense, LIMIT))
        wrong += proof.p_values(dense[None], own[None])[0] <= proof.spends
    assert (wrong <= _at_most(runs)) == clustered


def _sentences(draw: np.random.Generator, loss: float, texts: int, each: int = 48) -> Exam:
    """Reciprocal ranks of the sentences of texts, a few of which lose much and others nothing."""
    dense = np.where(draw.random((texts, each)) < 0.8, 1.0, 0.5)
    share = loss * draw.exponential(1, (texts, 1))  # of a text's sentences that are lost
    own = dense * (draw.random(dense.shape) >= share)
    groups = tuple(i for i in range(texts) for _ in range(each))
    data = Prepared(tuple(map(str, groups)), 1, (), 8, "", ([(dense.ravel(), own.ravel())], 8))
    return Exam(_Ranks(), data, groups=groups)


@pytest.mark.parametrize("grouped", [True, False])
def test_sentences_of_a_text_that_are_lost_together_make_no_more_false_claims(grouped):
    """As independent items they do, in one run of four."""
    draw = np.random.default_rng(8)
    runs, wrong = 1000, 0
    for _ in range(runs):
        exams = [_sentences(draw, LIMIT, texts) for texts in (60, 20)]
        exam, search = (each if grouped else replace(each, groups=()) for each in exams)
        (dense, own), (search_dense, search_own) = (
            [its.scores(*_pair(its, k)) for k in (0, 1)] for its in (exam, search)
        )
        worst = exam.worst(search_own, search_dense, LIMIT)
        proof = exam.proof(LIMIT, 1, worst)
        kept = worst is None or exam.lost(own, dense).max() <= worst
        wrong += kept and proof.p_values(dense[None], own[None])[0] <= proof.spends
    assert (wrong <= _at_most(runs)) == grouped


def test_a_small_loss_of_sentences_is_proved_by_their_texts():
    draw = np.random.default_rng(9)
    found = 0
    for _ in range(20):
        exam = _sentences(draw, 0.1 * LIMIT, 60)
        dense, own = (exam.scores(*_pair(exam, k)) for k in (0, 1))
        assert len(own) == exam.items == 60
        found += exam.proof(LIMIT, 1, exam.worst(own, dense, LIMIT)).look(dense, own).state == "proved"
    assert found >= 15


@pytest.mark.parametrize("one_in", [1, 2, 3, 5])
def test_harm_to_a_few_texts_is_not_overlooked_by_those_that_lose_nothing(one_in):
    """Even where a text loses more than the bound counts on: as many are looked at as it takes to see one of them."""
    draw, runs, most = np.random.default_rng(10), 1000, 2 * np.log1p(LIMIT)
    lost = np.log1p(LIMIT) * one_in * (draw.random((runs, 60)) < 1 / one_in)
    proof = proof_of(LIMIT, "perplexity", 1, most)
    claimed = np.zeros(runs, bool)
    for looks in range(FEWEST, 61):
        seen = lost[:, :looks]
        claimed |= (proof.p_values(0 * seen, seen) <= proof.spends) & (seen.max(1) <= most)
    assert claimed.sum() <= _at_most(runs)


def test_a_claim_takes_as_many_items_as_that():
    proof = proof_of(LIMIT, "perplexity", 1, 2 * np.log1p(LIMIT))
    nothing = np.zeros(FEWEST)
    assert proof.fewest < FEWEST
    for looks, known in ((FEWEST - 1, None), (FEWEST, True)):
        verdict = proof.look(nothing[:looks], nothing[:looks])
        assert decided(verdict, nothing[:looks], proof.worst, FEWEST) is known
        assert (bound_of(verdict, nothing[:looks], proof.worst, FEWEST) is None) is (known is None)
    assert decided(verdict, nothing + 1, proof.worst, FEWEST) is False


def test_a_text_is_an_item_of_the_proof():
    found = prove(0, {"m": ("nm-1-2",)}, [0.2], (_texts(np.random.default_rng(5), 0.001),), _Model(), LIMIT, _Once(),  # type: ignore[arg-type]
                  lambda: None, lambda: True)  # fmt: skip
    assert found.holds
    assert found.lost[0].items == found.lost[0].looks < 60


def _looks(seed: int, loss: float, last: bool) -> int:
    """How many texts a try takes."""
    draw = np.random.default_rng(seed)
    dense, lost = draw.normal(3, 0.5, (60, 4)), draw.normal(np.log1p(loss), 0.5 * np.log1p(loss), (60, 1))
    data = Prepared(tuple(map(str, range(240))), 60, (), 8, "", list(zip(dense, dense + lost, strict=True)))
    exam = Exam(_Nats(), data, clustered=True)
    return prove(0, {"m": ("nm-1-2",)}, [0.15], (exam,), _Model(), LIMIT, _Once(), lambda: None, lambda: True,  # type: ignore[arg-type]
                 last=last).lost[0].looks  # fmt: skip


def test_a_try_that_another_may_follow_ends_where_more_texts_would_prove_nothing():
    """A loss so near to the limit would take hundreds of texts; the last try sees all that there are."""
    near = [(_looks(seed, 0.9 * LIMIT, last=False), _looks(seed, 0.9 * LIMIT, last=True)) for seed in range(20)]
    assert np.median([first for first, _ in near]) == 20
    assert np.median([second for _, second in near]) == 60
    for seed in range(20):
        assert _looks(seed, 0.2 * LIMIT, last=False) == _looks(seed, 0.2 * LIMIT, last=True) < 30


def test_a_further_try_on_the_same_texts_takes_the_dense_scores_that_are_there(tmp_path):
    draw, kept = np.random.default_rng(6), dict[str, Any]()

    class Kept:
        def once(self, name, find):
            kept.setdefault(name, []).append(name)
            return find()

    exam = _exam(draw, 0.0, noise=0.001)
    for number in (0, 1):
        assert prove(
            number, {"m": ("nm-1-2",)}, [0.2], (exam,), _Model(), LIMIT, Kept(), lambda: None, lambda: True, data=0,  # type: ignore[arg-type]
        ).holds  # fmt: skip
    dense = [names for name, names in kept.items() if "dense" in name]
    assert all(len(names) == 2 for names in dense[:2])


def test_the_exams_take_turns(monkeypatch):
    draw = np.random.default_rng(7)
    left = iter([True] * 6 + [False] * 20)
    found = _try(0, _exam(draw, LIMIT), _exam(draw, LIMIT, second=True, noise=1.0), in_time=lambda: next(left))
    assert abs(found.lost[0].looks - found.lost[1].looks) <= 1


def test_a_small_loss_is_proved_and_stops_early():
    draw = np.random.default_rng(1)
    found = [_try(0, _exam(draw, 0.001, noise=0.002)) for _ in range(20)]
    assert all(each.holds for each in found)
    assert all(each.lost[0].items == each.lost[0].looks * EACH for each in found)
    assert all(each.lost[0].bound is not None and each.lost[0].bound <= LIMIT for each in found)
    assert min(each.lost[0].looks for each in found) < ENTRIES


def test_a_large_loss_is_refuted_without_reading_everything_and_ends_the_try():
    draw = np.random.default_rng(2)
    found = _try(0, _exam(draw, 0.6), _exam(draw, 0.0, second=True))
    assert not found.holds
    assert len(found.lost) == 1
    assert found.lost[0].looks < ENTRIES


def test_the_unlike_task_has_to_hold_as_well_within_a_wider_limit():
    draw = np.random.default_rng(3)
    good = _exam(draw, 0.0, noise=0.001)
    assert _try(0, good, _exam(draw, 0.1, second=True, noise=0.001)).holds
    lost = _try(0, good, _exam(draw, 0.9, second=True, noise=0.001))
    assert not lost.holds
    assert lost.lost[0].loss < LIMIT
    assert not lost.lost[1].holds
    assert lost.lost[1].loss > lost.lost[1].limit


def test_a_task_that_says_nothing_neither_ends_the_try_nor_takes_its_time(monkeypatch):
    monkeypatch.setattr(Exam, "says_nothing", lambda self, dense: True)
    draw = np.random.default_rng(13)
    for loss in (0.9, 0.2):  # more than the bound counts on; undecided
        found = _try(0, _exam(draw, 0.0, noise=0.001), _exam(draw, loss, second=True, noise=0.5))
        assert found.holds
        assert found.lost[1].looks <= found.lost[0].looks < ENTRIES


def test_where_the_time_is_over_nothing_is_claimed():
    draw = np.random.default_rng(4)
    found = _try(0, _exam(draw, 0.0, noise=0.001), in_time=lambda: False)
    assert found.lost[0].looks == 1
    assert not found.holds


def test_what_comes_along_with_the_first_exam_takes_no_forward_of_its_own(tmp_path):
    draw, asked = np.random.default_rng(11), list[int]()

    class Along(_Nats):
        name = "with numbers"

        def evaluate(self, pretrained: Any, data, advance) -> Outcome:
            asked.append(pretrained.tuned)
            found = _Nats.evaluate(self, pretrained, data, advance)
            return found._replace(beside=2 * np.array(found.scores))

    exam = _texts(draw, 0.001, blocks=1, texts=40)
    first, second = replace(exam, task=Along()), replace(exam, second=True, beside=True)
    store = Store(tmp_path / "stages.json", "key")
    found = prove(0, {"m": ("nm-1-2",)}, [0.2, 0.9], (first, second), _Model(), LIMIT, store,  # type: ignore[arg-type]
                  lambda: None, lambda: True)  # fmt: skip
    assert found.holds
    assert [lost.items for lost in found.lost] == [FEWEST, FEWEST]
    assert asked == [0, 1] * FEWEST
    assert found.lost[1].dense == pytest.approx(2 * found.lost[0].dense)
    assert found.lost[1].tuned == pytest.approx(2 * found.lost[0].tuned)


def test_an_item_that_loses_more_than_the_bound_counts_on_ends_the_try():
    exam = _texts(np.random.default_rng(12), 0.001, texts=40)
    dense, own = exam.data.payload[3]
    exam.data.payload[3] = (dense, own + 1.0)
    found = prove(0, {"m": ("nm-1-2",)}, [0.2], (exam,), _Model(), LIMIT, _Once(), lambda: None, lambda: True)  # type: ignore[arg-type]
    assert not found.holds
    assert found.lost[0].looks == 4
    assert found.lost[0].bound is None  # its condition does not hold


def test_the_fewer_scores_an_item_is_the_mean_of_the_more_it_may_lose():
    nothing = np.zeros(1)
    for clustered, second, times in ((True, False, 2), (True, True, 3), (False, False, 4)):
        exam = replace(_exam(np.random.default_rng(0), 0.0, second), clustered=clustered)
        assert exam.worst(nothing, nothing, LIMIT) == pytest.approx(times * np.log1p(exam.limit(LIMIT)))
    sentences = _sentences(np.random.default_rng(0), LIMIT, 60)
    dense = sentences.scores(*_pair(sentences, 0))
    assert sentences.worst(dense, dense, LIMIT) == pytest.approx(4 * LIMIT * dense.mean())
