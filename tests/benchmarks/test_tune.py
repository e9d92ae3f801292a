"""The script that records tunings: models and options apart, files where they belong."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

from dynattn.lab.machine import machine


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
    tune.main(["smollm2", "--phase", "decode", "--dtype=bfloat16", "--length", "4096"])
    assert (tmp_path / "results" / "smollm2-decode-bfloat16-4096.json").read_text() == "smollm2"
    tune.main([])
    assert commands[-1][4] == "smollm2"
    assert commands[-1][-4:] == ["--minutes", "10", "--output", "reports"]
    tune.main(["dinov2"])
    assert commands[-1][-4:] == ["--minutes", "8", "--output", "reports"]


def test_a_file_of_a_gain_that_is_no_longer_found_does_not_stay(script, tmp_path, monkeypatch):
    tune = script("tune")
    (tmp_path / "results").mkdir()
    for model in ("smollm2", "minilm"):
        (tmp_path / "results" / f"{model}.dynattn.json").write_text("of a run before")
    folder = tmp_path / "reports" / "tune-smollm2"
    folder.mkdir(parents=True)
    (folder / "tune.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "RESULTS", tmp_path / "results")
    for code in (2, 0):  # a run that failed leaves what is there
        monkeypatch.setattr(subprocess, "run", lambda *_, code=code, **__: SimpleNamespace(returncode=code))
        tune.main(["smollm2"])
        assert (tmp_path / "results" / "smollm2.dynattn.json").exists() == (code == 2)
    assert (tmp_path / "results" / "minilm.dynattn.json").exists()


def test_the_page_says_whether_the_best_single_method_is_beaten(script, tmp_path, monkeypatch):
    tune = script("tune")
    monkeypatch.setattr(tune, "RESULTS", tmp_path)
    found = {
        "model": "mine", "phase": "prefill", "dtype": "float32", "time": {"length": 64}, "verdict": "faster",
        "machine": machine(), "settings": {"max_loss": 0.01, "minutes": 6.0}, "speed": {"speedup": {"median": 1.2}},
        "tries": [{"lost": [{"task": "perplexity", "loss": 0.004, "bound": 0.009}]}],
        "rival": {"method": "nm-1-2", "speedup": 1.3, "loss": 0.007, "tuned": 0.004},
    }  # fmt: skip
    dense = {**found, "model": "other", "verdict": "dense", "reason": "keep dense attention: so it is"}
    for each in (found, dense):
        (tmp_path / f"{each['model']}.json").write_text(json.dumps(each))
    page = tune.with_table(f"{tune.START}{tune.END}")
    assert "| mine, 64 tokens, float32, 6 min | 1.20× | perplexity +0.40%, 0.90% | 1:2 | 1.30× | +0.70% |" in page
    assert "mine: The best single method for all heads, 1:2" in page
    assert "is not proved by these items" in page
    assert "other: keep dense attention: so it is." in page
    assert page.count(machine()["processor"]) == 1
    elsewhere = {**dense, "model": "third", "machine": {**machine(), "processor": "another one"}}
    (tmp_path / "third.json").write_text(json.dumps(elsewhere))
    assert tune.with_table(f"{tune.START}{tune.END}").count("| whole model |") == 2 * 2
