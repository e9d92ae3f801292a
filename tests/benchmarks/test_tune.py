"""The script that records tunings: models and options apart, files where they belong."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace


def test_files_of_each_model_are_kept(script, tmp_path, monkeypatch):
    tune, commands = script("tune"), []

    def run(command, check):
        commands.append(command)
        folder = tmp_path / "reports" / (f"tune-{command[4]}" + ("-decode" if "decode" in command else ""))
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tune.json", "tune.html"):  # dense attention was to be kept: no model's file
            (folder / name).write_text(command[4])
        return SimpleNamespace(returncode=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(tune, "RESULTS", tmp_path / "results")
    assert tune.main(["smollm2", "minilm", "--minutes", "3"]) == 0
    assert [command[3:5] for command in commands] == [["tune", "smollm2"], ["tune", "minilm"]]
    assert all(command[-4:] == ["--minutes", "3", "--output", "reports"] for command in commands)
    kept = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert kept == ["minilm.html", "minilm.json", "smollm2.html", "smollm2.json"]
    assert (tmp_path / "results" / "minilm.json").read_text() == "minilm"
    tune.main(["smollm2", "--phase", "decode"])
    assert (tmp_path / "results" / "smollm2-decode.json").read_text() == "smollm2"
    tune.main([])
    assert commands[-1][4] == "smollm2"
    assert "--minutes" not in commands[-1]
    tune.main(["dinov2"])
    assert commands[-1][-4:] == ["--minutes", "8", "--output", "reports"]
