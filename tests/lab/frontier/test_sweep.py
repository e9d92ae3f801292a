"""Sweeps over a tiny model: what is measured, what a kill costs, workers here and on a cluster, the command."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")


from dynattn.integrations.transformers import observing
from dynattn.lab import records
from dynattn.lab.frontier import Settings, measure, store, sweep
from dynattn.lab.frontier.cell import DENSE, Cell, Exam
from dynattn.lab.frontier.document import page
from dynattn.lab.frontier.measure import Answer, SweepJob
from dynattn.lab.frontier.results import Failure, Frontier, InputWork
from dynattn.lab.frontier.sweep import plan
from dynattn.lab.frontier.terminal import summary
from dynattn.lab.models import Pretrained
from dynattn.lab.tasks.base import Inputs
from tests.lab.frontier.running import here, settings_for, silent


def test_every_method_is_measured_at_every_length_beside_dense_attention(measured: tuple[Frontier, Path]):
    found, path = measured
    assert found.failures == {}
    assert len(found.sheets) == 2
    assert len(found.grades) == 6
    for sheet in found.sheets.values():
        assert len(sheet.items) == 6
        dense = found.grade(sheet.exam, DENSE)
        assert dense is not None
        assert dense.work.pairs == 2 * 2 * sheet.length**2
        for grade in found.grades.values():
            assert len(grade.scores) == 6
            if grade.cell.exam == sheet.exam and grade.cell.entry.name == "nm-1-4":
                assert grade.work.pairs == sheet.length**2
                assert grade.work.kept_mass is not None
                assert grade.work.kept_mass < 0.5
    assert {(time.race.entry.name, time.length) for time in found.times.values()} == {
        (method, length) for method in ("nm-1-2", "nm-1-4") for length in (32, 64)
    }
    assert {grade.machine for grade in found.grades.values()} <= set(found.machines)
    assert store.load(path) == found


def test_a_decoder_has_its_tasks_and_its_allowed_pairs(tiny_decoder: Path, texts: Path, tmp_path: Path):
    settings = settings_for(
        tiny_decoder, texts, tasks=("perplexity", "passkey"), tokens=(64,), items=2, methods=("nm-1-4",), seconds=0
    )
    found = sweep(settings, tmp_path / "record.json", silent, here)
    assert [sheet.exam.task for sheet in found.sheets.values()] == ["perplexity", "passkey"]
    assert found.times == {}
    for sheet in found.sheets.values():
        dense, sparse = (grade for grade in found.grades.values() if grade.cell.exam == sheet.exam)
        assert dense.work.pairs == 2 * 4 * 64 * 65 / 2
        assert sparse.work.pairs is not None
        assert dense.work.pairs is not None
        assert 0.25 < sparse.work.pairs / dense.work.pairs < 0.3  # groups that the diagonal cuts keep more
        assert sparse.scores != dense.scores


def test_the_decode_phase_stands_apart(tiny_decoder: Path, texts: Path, tmp_path: Path):
    methods = ("nm-1-4", "cache-window-16-s1", "cache-spatten-flat-0.25", "cache-adasnapkv-16-r4")
    settings = settings_for(
        tiny_decoder, texts, tasks=("passkey",), tokens=(128,), items=2, methods=methods, phases=("prefill", "decode")
    )
    cells = [cell for cell in plan(settings, "decoder")[0] if cell.exam.phase == "decode"]
    found = sweep(settings, tmp_path / "record.json", silent, lambda job, _: here(job, cells))
    assert found.failures == {}
    (sheet,) = found.sheets.values()
    dense, nm, window, spatten, shared = (found.grades[cell.key] for cell in cells)
    heads = 2 * 4  # layers, heads
    prompt = dense.work.pairs
    assert prompt is not None
    assert prompt % heads == 0
    assert 0 < prompt / heads <= sheet.length - 64  # the first token after the prompt is among its own keys
    assert nm.work.pairs == heads * -(-prompt // heads // 4)
    assert window.work.pairs is not None
    assert window.work.pairs < heads * (16 + 1 + 33)  # evicted in pieces of 32
    assert window.work.kept_mass is None
    assert spatten.work.pairs is not None
    assert spatten.work.pairs < prompt
    assert shared.work.pairs == heads * (16 + 1)  # of the prompt, whatever each head's share, and the token itself
    assert nm.scores != dense.scores != window.scores
    assert {time.race.entry.name for time in found.times.values()} == set(methods)
    assert all(0 < time.seconds.median < 1 for time in found.times.values())


def test_a_dtype_is_that_of_the_model_and_of_every_call(
    tiny_decoder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where budgets are looked for, where scores are taken and where forwards and steps are timed."""
    sdpa, seen = torch.nn.functional.scaled_dot_product_attention, set()

    def watched(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        seen.add(query.dtype)
        return sdpa(query, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    given = {"tasks": ("passkey",), "tokens": (128,), "items": 4, "phases": ("prefill", "decode")}
    found = {}
    for dtype in ("float32", "bfloat16"):
        seen.clear()
        settings = settings_for(tiny_decoder, texts, **given, dtype=dtype, methods=("nm-1-4",))
        calls: set[torch.dtype] = set()
        with observing(lambda call, calls=calls: calls.add(call.query.dtype)):
            found[dtype] = sweep(settings, tmp_path / f"{dtype}.json", silent, here)
        assert seen == calls == {getattr(torch, dtype)}
        assert found[dtype].failures == {}
        assert found[dtype].dtype == dtype
        assert len(found[dtype].times) == 2
        assert f"in {dtype}" in page(found[dtype])
        assert f"in {dtype}" in summary(found[dtype], "decode").title
    assert not found["float32"].grades.keys() & found["bfloat16"].grades.keys()
    whole, half = (
        {(g.cell.exam.phase, g.cell.entry.name): g.scores for g in one.grades.values()} for one in found.values()
    )
    assert whole.keys() == half.keys()
    for key, scores in whole.items():
        assert scores != half[key]
        assert scores == pytest.approx(half[key], rel=0.05)


def test_budgets_are_looked_for_in_the_dtype(tiny_decoder: Path, texts: Path, tmp_path: Path):
    calls = set()
    settings = settings_for(
        tiny_decoder, texts, tasks=("passkey",), tokens=(128,), items=2, phases=("prefill", "decode"), dtype="bfloat16",
        methods=(), families=("top-k", "cache: window"), budgets=(0.5,), measured=True, seconds=0,
    )  # fmt: skip
    with observing(lambda call: calls.add(call.query.dtype)):
        found = sweep(settings, tmp_path / "record.json", silent, lambda job, cells: here(job, ()))
    assert calls == {torch.bfloat16}
    assert {one.search.exam.dtype for one in found.solved.values()} == {"bfloat16"}
    assert found.failures == {}


def test_decoding_asks_for_a_decoder_and_for_answers(tiny_encoder: Path, tiny_decoder: Path, texts: Path):
    with pytest.raises(ValueError, match="only decoders decode"):
        plan(settings_for(tiny_encoder, texts, phases=("decode",)), "encoder")
    with pytest.raises(ValueError, match="tasks that ask for an answer: got perplexity"):
        plan(settings_for(tiny_decoder, texts, phases=("decode",), tasks=("perplexity",)), "decoder")


def test_methods_that_take_tokens_away_leave_the_model_as_it_was(
    measured: tuple[Frontier, Path], tiny_encoder: Path, texts: Path, tmp_path: Path
):
    settings = settings_for(tiny_encoder, texts, tokens=(64,), methods=("spatten-0.25", "nm-1-2"))
    found = sweep(settings, tmp_path / "record.json", silent, here)
    assert found.failures == {}
    dense, spatten, nm = found.grades.values()
    assert dense.work.pairs is not None
    assert spatten.work.pairs == 2 * (64**2 + 16**2)  # heads, layers of 64 and of 16 tokens
    assert dense.work.attention > spatten.work.attention
    assert dense.work.total - dense.work.attention > spatten.work.total - spatten.work.attention
    assert nm.scores == next(grade.scores for grade in measured[0].grades.values() if grade.cell.key == nm.cell.key)
    assert len(found.times) == 2


def test_going_on_measures_what_is_missing_and_nothing_else(
    measured: tuple[Frontier, Path], tiny_encoder: Path, texts: Path, tmp_path: Path
):
    found, _ = measured
    missing = next(key for key, grade in found.grades.items() if grade.cell.entry.name == "nm-1-4")
    lost = next(iter(found.times))
    path = tmp_path / "record.json"
    rest = {"grades": {k: v for k, v in found.grades.items() if k != missing}}
    rest |= {"times": {k: v for k, v in found.times.items() if k != lost}}
    store.save(found.model_copy(update=rest), path)
    asked: list[Cell] = []

    def watched(job: SweepJob, cells: Sequence[Cell]) -> Generator[Answer, None, None]:
        asked.extend(cells)
        return here(job, cells)

    again = sweep(settings_for(tiny_encoder, texts), path, silent, watched)
    assert [cell.key for cell in asked] == [missing]
    assert again.grades[missing].scores == found.grades[missing].scores
    assert again.times.keys() == found.times.keys()
    kept = again.times.keys() - {lost}
    assert {key: again.times[key] for key in kept} == {key: found.times[key] for key in kept}


def test_what_cannot_be_measured_is_told_and_the_rest_goes_on(
    tiny_encoder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(pretrained: Pretrained, name: str, examples: Sequence[Inputs]) -> InputWork:
        if name == "nm-1-2":
            raise ValueError("not for this model")
        return look(pretrained, name, examples)

    look = measure.look
    monkeypatch.setattr(measure, "look", broken)
    settings = settings_for(tiny_encoder, texts, tokens=(32,))
    found = sweep(settings, tmp_path / "record.json", silent, here)
    (why,) = found.failures.values()
    assert (why.entry.name, why.reason) == ("nm-1-2", "not for this model")
    assert {grade.cell.entry.name for grade in found.grades.values()} == {"sdpa", "nm-1-4"}
    assert {time.race.entry.name for time in found.times.values()} == {"nm-1-4"}
    monkeypatch.setattr(measure, "look", look)
    again = sweep(settings, tmp_path / "record.json", silent, here)
    assert again.failures == {}
    assert len(again.grades) == 3


def test_a_task_of_another_kind_is_refused_before_there_is_a_record(tiny_encoder: Path, texts: Path, tmp_path: Path):
    path = tmp_path / "record.json"
    with pytest.raises(ValueError, match="task perplexity takes a model that is decoder"):
        sweep(settings_for(tiny_encoder, texts, tasks=("retrieval", "perplexity")), path, silent, here)
    assert not path.exists()


def test_failures_of_before_are_no_failures_of_now(tiny_encoder: Path, texts: Path, tmp_path: Path):
    path = tmp_path / "record.json"
    settings = settings_for(tiny_encoder, texts, tokens=(32,), seconds=0)
    found = sweep(settings, path, silent, here)
    cell = Cell(
        exam=Exam(model=str(tiny_encoder), phase="prefill", task="perplexity", tokens=32, items=6, texts=None),
        entry=DENSE,
    )
    failure = Failure(exam=cell.exam, entry=DENSE, reason="a wrong option, once")
    store.save(found.model_copy(update={"failures": {cell.key: failure}}), path)
    assert sweep(settings, path, silent, here).failures == {}


def test_two_sweeps_do_not_write_one_record(tiny_encoder: Path, texts: Path, tmp_path: Path):
    path = tmp_path / "record.json"
    with records.alone(path), pytest.raises(ValueError, match=r"another is at work in .*record\.json"):
        sweep(settings_for(tiny_encoder, texts), path, silent, here)
    assert not path.exists()


def test_a_record_of_another_model_is_not_gone_on_with(
    measured: tuple[Frontier, Path], tiny_decoder: Path, texts: Path
):
    with pytest.raises(ValueError, match="a record must be of one model"):
        sweep(settings_for(tiny_decoder, texts, tasks=("passkey",)), measured[1], silent, here)


def test_a_record_of_another_dtype_is_not_gone_on_with(
    measured: tuple[Frontier, Path], tiny_encoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
):
    module = sys.modules["dynattn.lab.frontier.sweep"]  # the package gives its function this name
    monkeypatch.setattr(module, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=r"a record must be of one dtype: .*json is of float32, not of bfloat16"):
        sweep(settings_for(tiny_encoder, texts, dtype="bfloat16"), measured[1], silent, here)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"tasks": ("perplexity",)}, "task perplexity takes a model that is decoder"),
        ({"phases": ("decode",)}, "only decoders decode"),
        ({"tasks": ("manpages",)}, "task manpages takes no texts"),
        ({"methods": ("cache-window-32-s4",)}, "caches that forget take part in the decode phase alone"),
    ],
)
def test_what_is_not_for_the_models_kind_is_refused_before_it_is_loaded(
    asked: dict, words: str, tiny_encoder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = sys.modules["dynattn.lab.frontier.sweep"]  # the package gives its function this name
    monkeypatch.setattr(module, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=words):
        sweep(settings_for(tiny_encoder, texts, **asked), tmp_path / "record.json", silent, here)
    assert list(tmp_path.iterdir()) == []


def test_the_users_texts_leave_default_tasks_out_that_take_none():
    given = Settings("m", text=Path("t"), methods=("nm-1-2",), tokens=(64,))
    module = sys.modules["dynattn.lab.frontier.sweep"]
    assert module._tasks(given, "encoder", "prefill") == ("retrieval",)
    assert module._tasks(Settings("m"), "encoder", "prefill") == ("retrieval", "manpages")
    assert module._tasks(given, "vision", "prefill") == ("features",)  # refused in words


def test_texts_longer_than_the_model_takes_are_refused(tiny_encoder: Path, texts: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"as many as the model takes: got 200, .* takes 128; pass --tokens 128"):
        sweep(settings_for(tiny_encoder, texts, tokens=(64, 200)), tmp_path / "record.json", silent, here)
    with pytest.raises(ValueError, match=r"got 256, .* takes 128"):  # what is taken where none is asked for
        sweep(settings_for(tiny_encoder, texts, tokens=()), tmp_path / "record.json", silent, here)


def test_caches_that_forget_take_part_while_decoding_alone():
    both = Settings(model="smollm2", methods=("nm-1-2", "cache-window-32-s4"), phases=("prefill", "decode"))
    found = {phase: set() for phase in both.phases}
    for cell in plan(both, "decoder")[0]:
        found[cell.exam.phase].add(cell.entry.name)
    assert found == {"prefill": {"sdpa", "nm-1-2"}, "decode": {"sdpa", "nm-1-2", "cache-window-32-s4"}}
    with pytest.raises(ValueError, match="caches that forget take part in the decode phase alone"):
        plan(Settings(model="smollm2", methods=("cache-window-32-s4",)), "decoder")
