"""The command on tiny models: what it trains, what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from dynattn.lab.models import load
from dynattn.lab.tasks import make
from dynattn.lab.tasks.texts import read
from dynattn.lab.training.results import Study
from tests.lab.finetune.running import APP, RETRIEVAL, SIZES


def test_the_command_prints_a_table_and_says_where_the_report_is(written: tuple[str, Path]):
    text, folder = written
    assert "gain" in text
    assert "1:2, fine-tuned, less dense, fine-tuned" in text
    assert "1:2, put into the dense fine-tuned model, less dense, fine-tuned" in text.replace("\n", " ")
    (report,) = folder.glob("*.html")
    assert report.name in text.replace("\n", "")
    (runs,) = (path for path in folder.iterdir() if path.is_dir())
    names = {path.name for path in runs.iterdir() if path.is_dir()}
    assert names == {"sdpa-seed0", "sdpa-seed1", "nm-1-2-seed0", "nm-1-2-seed1"}


def test_scores_without_training_are_those_of_the_task(found: Study, tiny_encoder: Path, many_texts: Path):
    pretrained = load(str(tiny_encoder))
    task = make("retrieval", pretrained, items=6, tokens=64, texts=read(many_texts))
    data = task.prepare(pretrained)
    scores = task.evaluate(pretrained, data, lambda: None).scores
    arm = found.of("sdpa", trained=False)
    assert arm is not None
    assert scores is not None
    assert arm.runs[0].scores == scores.tolist()
    assert found.items == list(data.labels)


def test_a_kept_model_gives_the_scores_of_the_report(
    written: tuple[str, Path], found: Study, tiny_encoder: Path, many_texts: Path
):
    (kept,) = written[1].glob("*/nm-1-2-seed1/model")
    pretrained = load(str(kept))
    pretrained.model.set_attn_implementation("dynattn:nm-1-2")
    task = make("retrieval", pretrained, items=6, tokens=64, texts=read(many_texts))
    scores = task.evaluate(pretrained, task.prepare(pretrained), lambda: None).scores
    arm = found.of("nm-1-2", trained=True)
    assert arm is not None
    assert scores is not None
    assert arm.runs[1].scores == pytest.approx(scores.tolist(), abs=1e-9)


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, many_texts: Path) -> Path:
    """The folder that the command wrote for its default task."""
    output = tmp_path_factory.mktemp("restored")
    arguments = ["--model", str(tiny_encoder), "--text", str(many_texts), "--items", "6", "--seeds", "2"]
    arguments += ["--methods", "nm-1-2", "--keep-models", "--output", str(output)]
    result = CliRunner().invoke(APP, [*arguments, *SIZES, "--steps", "8"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return output


def _study(folder: Path) -> Study:
    (path,) = folder.glob("*.json")
    return Study.model_validate_json(path.read_text())


def test_the_default_task_of_an_encoder_is_one_it_cannot_do_yet(restored: Path, tmp_path: Path):
    found = _study(restored)
    assert found.name.endswith("on restore")
    states = [(arm.method, arm.trained, arm.swapped) for arm in found.arms]
    assert states == [("nm-1-2", True, True), ("sdpa", True, False), ("nm-1-2", True, False)]
    losses = [[point.value for point in run.losses] for arm in found.arms for run in arm.runs if run.losses]
    assert all(each[-1] < each[0] for each in losses)
    text = next(restored.glob("*.html")).read_text()
    assert "gain over swapped in" in text
    assert "without training</th>" not in text


def test_a_kept_tagger_is_loaded_by_transformers_and_gives_the_scores_of_the_report(
    restored: Path, tiny_encoder: Path, many_texts: Path
):
    from transformers import AutoModelForTokenClassification

    from dynattn.lab.finetune.restore import Restore, Tagger

    (kept,) = restored.glob("*/nm-1-2-seed1/model")
    model = AutoModelForTokenClassification.from_pretrained(kept)
    assert list(model.config.id2label.values()) == ["a", "A", "a,", "A,", "a.", "A."]
    model.set_attn_implementation("dynattn:nm-1-2")
    experiment = Restore(load(str(tiny_encoder)), 6, 64, read(many_texts))
    scores = experiment.evaluate(Tagger(model).eval(), lambda: None)
    arm = _study(restored).of("nm-1-2", trained=True)
    assert arm is not None
    assert arm.runs[1].scores == pytest.approx(scores.tolist(), abs=1e-9)


def test_a_method_that_is_added_later_is_put_into_the_dense_models_that_are_there(
    restored: Path, tiny_encoder: Path, many_texts: Path, tmp_path: Path
):
    shutil.copytree(restored, tmp_path, dirs_exist_ok=True)
    arguments = ["--model", str(tiny_encoder), "--text", str(many_texts), "--items", "6", "--seeds", "2"]
    arguments += ["--methods", "nm-1-2,nm-1-4", "--output", str(tmp_path), *SIZES, "--steps", "8"]
    result = CliRunner().invoke(APP, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    found, before = _study(tmp_path), _study(restored)
    assert found.dense == before.dense
    assert found.of("nm-1-2", trained=True, swapped=True) == before.of("nm-1-2", trained=True, swapped=True)
    arm = found.of("nm-1-4", trained=True, swapped=True)
    assert arm is not None
    assert [run.seed for run in arm.runs] == [0, 1]


def test_a_decoder_learns_to_predict_text(tiny_decoder: Path, many_texts: Path, tmp_path: Path):
    arguments = ["--model", str(tiny_decoder), "--text", str(many_texts), "--items", "2", "--seeds", "1"]
    arguments += ["--methods", "nm-2-4", "--output", str(tmp_path)]
    result = CliRunner().invoke(APP, [*arguments, *SIZES])
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("*on-perplexity.json")
    found = Study.model_validate_json(path.read_text())
    assert not found.higher_is_better
    for method in ("sdpa", "nm-2-4"):
        arm = found.of(method, trained=True)
        assert arm is not None
        assert arm.gain is not None
        assert arm.gain.mean < 0
    assert "interval)." in result.output.replace("\n", " ")  # too few items for one, and so no reading
    assert "nothing about other seeds" in result.output.replace("\n", " ").replace("  ", " ")


@pytest.mark.model
@pytest.mark.parametrize(
    ("task", "summary", "untrained"),
    [
        ("restore", "8 passages of 128 tokens from 8 Wikipedia articles, in lower case and without punctuation", 0.0),
        pytest.param("retrieval", "8 passages of 128 tokens from 1 Wikipedia article", 0.5, marks=pytest.mark.sweep),
    ],
)
def test_a_real_encoder_is_trained_on_real_texts(task: str, summary: str, untrained: float, tmp_path: Path):
    arguments = ["--items", "8", "--tokens", "128", "--steps", "2", "--batch", "8", "--seeds", "1", "--threads", "1"]
    arguments += ["--task", task, "--methods", "nm-1-2", "--output", str(tmp_path)]
    result = CliRunner().invoke(APP, arguments)
    assert result.exit_code == 0, result.output
    found = _study(tmp_path)
    assert summary in found.summary
    for arm in found.arms:
        assert untrained <= arm.score.mean <= 1
    sparse = found.of("nm-1-2", trained=True)
    assert sparse is not None
    losses = [[point.value for point in arm.runs[0].losses] for arm in (found.dense, sparse)]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert losses[1] != losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "nm-9-4"], "n must be between 1 and m"),
        (["--task", "passkey"], "task must be one of restore, manpages, retrieval, perplexity"),
        (["--task", "perplexity"], "takes a model that is decoder"),
        (["--task", "manpages", "--text", "TEXTS"], "takes no texts"),
        (["--text", "/nonexistent"], "must be a file or a folder"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--learning-rate", "-1"], "learning_rate must be positive"),
        (["--learning-rate", "0"], "learning_rate must be positive"),
        (["--learning-rate", "nan"], "learning_rate must be positive"),
        (["--model", "models/of/mine"], "got 'models/of/mine': no folder of this name is here; check the spelling"),
        ([*RETRIEVAL, "--text", "TEXTS", "--tokens", "64", "--items", "15"], "must fill a batch of 16"),
        (["--text", "TEXTS", "--tokens", "64", "--batch", "1000"], "must fill a batch of 1000"),
    ],
)
def test_wrong_options_end_with_a_reason(
    arguments: list[str], message: str, tiny_encoder: Path, many_texts: Path, tmp_path: Path
):
    given = [str(many_texts) if argument == "TEXTS" else argument for argument in arguments]
    command_line = ["--model", str(tiny_encoder), "--methods", "", *given, "--output", str(tmp_path)]
    result = CliRunner().invoke(APP, command_line, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"model": "dinov2"}, "must be an encoder or a decoder"),
        ({"model": "smollm2", "task": "restore"}, "restore: the model must be an encoder: smollm2 is decoder"),
        ({"model": "minilm", "task": "perplexity"}, "task perplexity takes a model that is decoder"),
        ({"task": "manpages", "text": True}, "task manpages takes no texts"),
        ({"model": "minlm"}, "did you mean minilm"),
    ],
)
def test_a_model_of_another_kind_is_refused_before_it_is_loaded(
    asked: dict, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many_texts: Path
):
    from dynattn.lab.finetune import finetune as module

    monkeypatch.setattr(module, "load", lambda *_: pytest.fail("the model was loaded"))
    if asked.get("text"):
        asked = asked | {"text": many_texts}
    with pytest.raises(ValueError, match=words):
        module.finetune(module.Settings(**asked), tmp_path, lambda title, steps: lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_another_recipe_in_the_same_folder_is_refused(written: tuple[str, Path], tiny_encoder: Path, many_texts: Path):
    arguments = [*RETRIEVAL, "--model", str(tiny_encoder), "--text", str(many_texts), "--items", "6", "--seeds", "2"]
    arguments += ["--methods", "nm-1-2", "--output", str(written[1]), *SIZES, "--batch", "16"]
    result = CliRunner().invoke(APP, arguments, env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert "has batch 8, now it is 16" in result.output
    assert "another --output" in result.output


def test_other_texts_in_the_same_folder_are_refused(
    written: tuple[str, Path], tiny_encoder: Path, many_texts: Path, tmp_path: Path
):
    for path in many_texts.iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace("moon", "mill"))
    arguments = [*RETRIEVAL, "--model", str(tiny_encoder), "--text", str(tmp_path), "--items", "6", "--seeds", "2"]
    arguments += ["--methods", "nm-1-2", "--output", str(written[1]), *SIZES]
    result = CliRunner().invoke(APP, arguments, env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert "has data '" in result.output


def test_json_refuses_unknown_fields(found: Study):
    record = json.loads(found.model_dump_json())
    record["speed"] = 1
    with pytest.raises(ValueError, match="speed"):
        Study.model_validate(record)
