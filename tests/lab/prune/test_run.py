"""A search on tiny models by real tasks: what is written is what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from transformers import AutoModel, AutoModelForCausalLM

from dynattn.lab.prune.results import Pruning
from dynattn.lab.prune.run import attention, examine, held_out, prune
from dynattn.lab.prune.search import Judge, Search, State
from dynattn.lab.prune.settings import Settings
from dynattn.pruning import Element, Removed


def silent(title: str, steps: int):
    return lambda: None


@pytest.fixture(scope="module", autouse=True)
def _untrained_models_may_guess():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynattn.lab.prune.run.at_chance", lambda *_: False)
        yield


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path, many_texts: Path) -> Settings:
    return Settings(model=str(tiny_encoder), text=many_texts, items=6, tokens=32, tolerance=0.9)


@pytest.fixture(scope="module")
def decoder(tiny_decoder: Path, many_texts: Path) -> Settings:
    return Settings(model=str(tiny_decoder), text=many_texts, items=6, tokens=128, tolerance=0.5)


def _prune(settings: Settings, folder: Path) -> Pruning:
    return prune(settings, folder / "record.json", folder / "left", silent)


def test_what_is_written_scores_as_the_record_says(decoder: Settings, tmp_path: Path):
    found = _prune(dataclasses.replace(decoder, blocks_only=True), tmp_path)
    assert found.removed
    assert found.parameters is not None
    assert found.parameters[1] < found.parameters[0]
    exam = examine(decoder)
    assert exam.validation == 2 * len(exam.data.labels) // 3
    auto = AutoModelForCausalLM
    if found.written == "model":
        exam.pretrained.model = None  # pyright: ignore[reportAttributeAccessIssue]  # never asked again
        again = auto.from_pretrained(tmp_path / "left")
    else:
        again = exam.pretrained.model
        Removed.load(tmp_path / "left" / "removed.json").cut(again)
    pretrained = dataclasses.replace(examine(decoder).pretrained, model=again.eval())
    scores = dataclasses.replace(exam, pretrained=pretrained).scores(State())
    kept = held_out(exam, scores)
    assert found.held_out is not None
    assert kept.mean == pytest.approx(found.held_out.mean, rel=1e-4)


@pytest.fixture(scope="module")
def searched(encoder: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pruning, Path]:
    folder = tmp_path_factory.mktemp("searched")
    return _prune(encoder, folder), folder


def test_it_goes_on_with_its_record(encoder: Settings, searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from dynattn.lab.prune import run

    whole, folder = searched
    kept = len(whole.trials) - 2
    cut = whole.model_copy(update={
        "trials": whole.trials[:kept], "written": None, "held_out": None, "removed": (), "parameters": None,
    })  # fmt: skip
    (tmp_path / "record.json").write_text(cut.model_dump_json())
    asked: list[State] = []
    real = run.Exam.scores
    monkeypatch.setattr(run.Exam, "scores", lambda exam, state: asked.append(state) or real(exam, state))
    again = _prune(encoder, tmp_path)
    assert len(asked) == 2 + 1  # and once for the held-out items
    assert [trial.name for trial in again.trials] == [trial.name for trial in whole.trials]
    assert (again.removed, again.held_out, again.written) == (whole.removed, whole.held_out, whole.written)
    asked.clear()
    assert _prune(encoder, folder).removed == whole.removed
    assert asked == []


def test_a_record_of_another_search_is_refused(encoder: Settings, searched):
    with pytest.raises(ValueError, match="a record must be of one search"):
        _prune(dataclasses.replace(encoder, tolerance=0.1), searched[1])


def test_gradient_flow_orders_the_blocks(decoder: Settings, tmp_path: Path):
    found = _prune(dataclasses.replace(decoder, order="gradient-flow", blocks_only=True), tmp_path)
    tried = [trial.name for trial in found.trials]
    assert tried == sorted(found.flow, key=found.flow.__getitem__)
    assert len(tried) == 4


def test_held_out_items_are_the_others(decoder: Settings):
    exam = examine(decoder)
    whole = exam.scores(State())
    assert held_out(exam, whole).mean == 1
    other = whole.copy()
    other[: exam.validation] += 1
    assert held_out(exam, other).mean == 1
    other[exam.validation :] += 1
    assert held_out(exam, other).mean == pytest.approx(np.exp(-1))


def test_layers_switch_to_top_k(encoder: Settings):
    from dynattn.lab.prune import run

    exam = examine(encoder)
    items = np.linspace(0.5, 0.9, 8)
    harmful = lambda state: bool(state.removed.elements) or (1, "topk-0.25") in state.hard  # noqa: E731
    search = Search(Judge(items, True, 0.0), lambda state: items - harmful(state))
    run._run(search, dataclasses.replace(encoder, hard=True), exam, {}, silent)
    assert search.state == State(Removed(), ((1, "topk-0.5"), (0, "topk-0.25")))
    assert attention(search.state) == "dynattn:perlayer(dense_0=topk-0.25_1=topk-0.5)"
    whole = exam.scores(State())
    assert np.array_equal(whole, exam.scores(State(Removed(frozenset()))))
    state = State(Removed(), ((0, "topk-0.25-f1"),))
    assert attention(state) == "dynattn:perlayer(dense_0=topk-0.25-f1)"
    outcome = run.evaluate(exam.task, exam.data, exam.pretrained, attention(state) or "", lambda: None)
    assert not np.array_equal(cast(Any, outcome.outputs), cast(Any, exam.whole.outputs))


def test_the_attention_of_what_is_left_counts_the_layers_that_are_left(encoder: Settings, tmp_path: Path):
    from dynattn.lab.prune import run

    exam = examine(encoder)
    state = State(Removed.of("attention-0", "mlp-0"), ((1, "topk-0.25"),))
    begun = run._begun(dataclasses.replace(encoder, hard=True), exam, tmp_path / "record.json")
    assert run._ended(begun, exam, state, tmp_path / "left").attention == "dynattn:perlayer(dense_0=topk-0.25)"


def test_what_can_tell_nothing_is_refused_before_the_search(encoder: Settings, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("dynattn.lab.prune.run.at_chance", lambda *_: True)
    with pytest.raises(ValueError, match="the whole model must do better than guesses"):
        _prune(encoder, tmp_path)
    monkeypatch.setattr("dynattn.lab.prune.run.at_chance", lambda *_: False)
    exam = examine(encoder)
    for layer in exam.pretrained.model.encoder.layer:
        del layer.attention.self.layer_idx
    monkeypatch.setattr("dynattn.lab.prune.run.examine", lambda _: exam)
    with pytest.raises(ValueError, match="--hard must have attention modules that know their layer"):
        _prune(dataclasses.replace(encoder, hard=True), tmp_path)
    assert not (tmp_path / "record.json").exists()


def test_a_setting_of_an_encoder_is_a_setting(encoder: Settings, tmp_path: Path):
    model = AutoModel.from_pretrained(encoder.model)
    removed = Removed(frozenset({Element("attention", 0)}))
    assert removed.export(model, tmp_path) == "setting"
    assert json.loads((tmp_path / "removed.json").read_text()) == {"schema_version": 1, "removed": ["attention-0"]}
