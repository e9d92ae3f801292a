"""``dynattn prune`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from typer.testing import CliRunner

from dynattn.cli import app
from dynattn.pruning import Removed


def _prune(*arguments: str):
    return CliRunner().invoke(app, ["prune", *arguments])


def test_the_command_writes_what_it_found(
    tiny_decoder: Path, many_texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dynattn.lab.prune.run.at_chance", lambda *_: False)  # an untrained model only guesses
    given = ("--model", str(tiny_decoder), "--text", str(many_texts), "--items", "6", "--tokens", "128")
    result = _prune(*given, "--tolerance", "0.3", "--blocks-only", "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / f"prune-{tiny_decoder.name}.json").read_text())
    assert len(found["trials"]) == 4
    assert "held-out items" in result.output
    assert "MLP blocks" in result.output
    folder = tmp_path / f"prune-{tiny_decoder.name}"
    if found["written"] == "setting":
        assert list(Removed.load(folder / "removed.json").names) == found["removed"]
    else:
        assert (folder / "config.json").exists()
        assert (folder / "tokenizer.json").exists()


WRONG = {"--order": "random", "--first": "heads", "--task": "chess", "--tolerance": "2", "--model": "none"}


@pytest.mark.parametrize("wrong", WRONG.items())
def test_wrong_options_end_with_the_reason(wrong, tmp_path):
    result = _prune(*wrong, "--output", str(tmp_path))
    assert result.exit_code == 2
    assert wrong[1] in result.output
