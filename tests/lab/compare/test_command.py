"""The command on a tiny model: what it prints and writes, and how it ends where options are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from dynattn.lab.words import label
from tests.lab.compare.running import APP, METHODS
from tests.methods.test_own_method import environment, python  # noqa: F401  # a fixture


def test_the_command_prints_a_table_and_says_where_the_report_is(written: tuple[str, Path]):
    text, folder = written
    for method in METHODS:
        assert label(method) in text
    assert "retrieval" in text
    (report,) = folder.glob("*.html")
    assert report.name in text.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "nm-9-4"], "n must be between 1 and m"),
        (["--methods", "topk"], "parse: name must be"),
        (["--tasks", "nonsense"], "task must be one of"),
        (["--tasks", "perplexity"], "takes a model that is decoder"),
        (["--tasks", "manpages", "--text", "TEXTS"], "takes no texts"),
        (["--text", "/nonexistent"], "must be a file or a folder"),
        (["--items", "0"], "items must be at least 1"),
        (["--seconds", "0"], "must be positive"),
        (["--dtype", "float64"], "dtype must be one of float32, bfloat16, float16: got 'float64'"),
    ],
)
def test_wrong_options_end_with_a_reason(
    arguments: list[str], message: str, tiny_encoder: Path, texts: Path, tmp_path: Path
):
    given = [str(texts) if argument == "TEXTS" else argument for argument in arguments]
    command_line = ["--model", str(tiny_encoder), *given, "--output", str(tmp_path)]
    result = CliRunner().invoke(APP, command_line, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in result.output


def test_an_unknown_model_ends_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(APP, ["--model", str(tmp_path / "none"), "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "error" in result.output


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
def test_a_users_own_method_is_known_to_every_process(
    environment: dict[str, str],  # noqa: F811
    tiny_encoder: Path,
    texts: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "reports"
    done = python(
        environment, "-m", "dynattn", "compare", "--model", str(tiny_encoder), "--text", str(texts), "--methods",
        "nearest-9,topk-0.25", "--tasks", "retrieval", "--items", "4", "--tokens", "64", "--seconds", "0.05",
        "--threads", "1", "--output", str(output),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (record,), (page,) = output.glob("*.json"), output.glob("*.html")
    found = json.loads(record.read_text())
    assert found["methods"] == ["nearest-9", "topk-0.25"]
    assert [entry["method"] for entry in found["kept"]] == ["nearest-9", "topk-0.25"]
    assert {"nearest-9", "topk-0.25"} <= {entry["method"] for entry in found["memory"]}  # measured in a process apart
    assert "nearest-9" in page.read_text()
