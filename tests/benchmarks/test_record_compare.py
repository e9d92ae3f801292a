"""Comparisons are recorded one after another, and failures told."""

from __future__ import annotations

import subprocess
from pathlib import Path


def test_comparisons_are_recorded_and_failures_told(script, tmp_path, monkeypatch, capsys):
    record_compare = script("record_compare")
    monkeypatch.setattr(record_compare, "RESULTS", tmp_path / "results")
    commands = []

    def dynattn(command, check):
        commands.append(command)
        model, folder = (command[command.index(option) + 1] for option in ("--model", "--output"))
        if model == "whisper":
            return subprocess.CompletedProcess(command, 2)
        Path(folder, f"compare-{model}.json").write_text(model)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(record_compare.subprocess, "run", dynattn)
    assert record_compare.main(["minilm"]) == 0
    assert commands[0][3:5] == ["compare", "--model"]
    assert "dense,nm-2-4,nm-1-2,nm-2-4-x16,nm-1-2-x16" in commands[0]
    assert record_compare.main([]) == 1
    assert "no record of whisper" in capsys.readouterr().out
    written = {path.stem: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert written == {
        "dinov2": "dinov2", "minilm": "minilm", "minilm-bfloat16": "minilm", "smollm2": "smollm2",
        "smollm2-bfloat16": "smollm2",
    }  # fmt: skip
    assert [command[command.index("--model") + 1] for command in commands if "bfloat16" in command] == [
        "smollm2", "minilm",
    ]  # fmt: skip
    assert record_compare.main(["nonsense"]) == 2
    assert len(commands) == 7
