"""benchmarks/block_choices.py: what it measures goes on after a kill, and what beats dense attention fails the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.lab.models import load
from dynattn.lab.tasks.perplexity import Perplexity
from dynattn.lab.tasks.texts import Text, read


@pytest.fixture
def choices(script: Any, tiny_decoder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with a tiny model, short texts and a folder of its own for the records."""
    module, given = script("block_choices"), read(texts)
    monkeypatch.setattr(module, "load", lambda _: load(str(tiny_decoder)))
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "KINDS", ("code",))
    monkeypatch.setattr(module, "sources", dict)
    monkeypatch.setattr(module, "texts", lambda *_: (Text("one", " ".join(text.body for text in given)),))
    task = Perplexity(items=2, tokens=64, block=8, texts=given)
    monkeypatch.setattr(module, "tasks", lambda *_: {"code": task})
    return module


def record(dense: list[float], other: list[float]) -> dict[str, Any]:
    return {"methods": {"dense": {"code": dense}, "other": {"code": other}}, "tasks": {"code": ""}}


def test_what_is_better_than_dense_attention_beyond_chance_is_found(script: Any) -> None:
    choices = script("block_choices")
    dense = np.random.default_rng(0).normal(3, 0.3, 16)
    noise = np.random.default_rng(1).normal(0, 0.01, 16)
    assert choices.beyond_chance(record(list(dense), list(dense + 0.05 + noise))) == []
    assert choices.beyond_chance(record(list(dense), list(dense + noise - noise.mean()))) == []
    assert choices.beyond_chance(record(list(dense), list(dense))) == []
    (found,) = choices.beyond_chance(record(list(dense), list(dense - 0.05 + noise)))
    assert found.startswith("other on code: better by 0.0")
    assert choices.beyond_chance(record(list(dense), list(dense - 0.05 + noise)), higher_is_better=True) == []
    assert choices.beyond_chance(record(list(dense), list(dense + 0.05 + noise)), higher_is_better=True)


def test_two_items_that_happen_to_lie_close_together_prove_nothing(script: Any) -> None:
    choices = script("block_choices")
    assert choices.beyond_chance(record([3.0, 3.1], [2.99, 3.088])) == []


def test_quality_goes_on_where_it_stopped_and_a_better_method_fails_it(choices: Any, tmp_path: Path) -> None:
    names = ["dense", "blocktopk-0.5-b8", "blockskip-1.0"]
    assert choices.quality(64, names[:2]) == 0
    path = tmp_path / "quality-64.json"
    first = json.loads(path.read_text())
    assert list(first["methods"]) == names[:2]
    first["methods"]["blocktopk-0.5-b8"]["code"] = [score - 1 for score in first["methods"]["dense"]["code"]]
    first["methods"]["blocktopk-0.5-b8"]["code"][0] += 0.1
    path.write_text(json.dumps(first))
    assert choices.quality(64, names) == 1
    second = json.loads(path.read_text())["methods"]
    assert second["blocktopk-0.5-b8"] == first["methods"]["blocktopk-0.5-b8"]  # not measured again
    assert len(second["blockskip-1.0"]["code"]) == len(second["dense"]["code"])
    assert second["blockskip-1.0"].keys() == json.loads(path.read_text())["seconds"]["blockskip-1.0"].keys()


def test_mass_goes_on_where_it_stopped(choices: Any, tmp_path: Path) -> None:
    choices.mass(64, ["blocktopk-0.5-b8"])
    path = tmp_path / "mass-64.json"
    found = json.loads(path.read_text())
    mass, density = found["methods"]["blocktopk-0.5-b8"]["code"]
    assert 0 < density < 1
    assert density < mass <= 1
    found["methods"]["blocktopk-0.5-b8"]["code"] = [0.5, 0.25]
    path.write_text(json.dumps(found))
    choices.mass(64, ["blocktopk-0.5-b8", "blockskip-1.0"])
    again = json.loads(path.read_text())["methods"]
    assert again["blocktopk-0.5-b8"]["code"] == [0.5, 0.25]
    assert again["blockskip-1.0"]["code"][0] > 0.3


def test_times_go_on_method_by_method(choices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []
    monkeypatch.setattr(choices, "timed", lambda _, name, dtype: {"speedup": float(len(timed.append(name) or timed))})
    choices.timings(64, ["dense", "blockskip-1.0"])
    choices.timings(64, ["dense", "blockskip-2.0"])
    choices.timings(32, ["dense"])
    assert timed == ["dense", "blockskip-1.0", "blockskip-2.0", "dense"]
    lengths = json.loads(choices.time_record().read_text())["lengths"]
    assert {length: list(found) for length, found in lengths.items()} == {
        "64": ["dense", "blockskip-1.0", "blockskip-2.0"], "32": ["dense"],
    }  # fmt: skip
    assert choices.main(["bfloat16", "32", "dense"]) == 0
    assert list(json.loads(choices.time_record(torch.bfloat16).read_text())["lengths"]) == ["32"]


def test_other_texts_have_a_record_of_their_own(choices: Any, tmp_path: Path) -> None:
    assert choices.main(["again", "64", "dense"]) == 0
    assert list(json.loads((tmp_path / "again-64.json").read_text())["methods"]) == ["dense"]
    assert not (tmp_path / "quality-64.json").exists()


def test_other_texts_hold_none_of_the_first(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("block_choices")
    monkeypatch.setattr(module, "texts", lambda kind, _: tuple(Text(f"{kind} {i}", "") for i in range(6)))
    first, other = module.tasks(2048), module.tasks(2048, module.OTHERS)
    for kind in module.KINDS:
        assert not {*first[kind].texts} & {*other[kind].texts}
    shown = [{text.title for text in task[module.FACT].texts[:2]} for task in (first, other)]
    assert not shown[0] & shown[1]
    assert first[module.FACT].seed != other[module.FACT].seed


def test_a_record_tells_of_every_processor_that_it_was_taken_on(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, record = script("block_choices"), {}
    for processor in ("old", "old", "new", "new"):
        monkeypatch.setattr(module, "machine", lambda processor=processor: {"processor": processor, "isa": "avx2"})
        module.note_machine(record)
    assert record["machine"]["processor"] == "new"
    assert [machine["processor"] for machine in record["earlier"]] == ["old"]


def test_a_method_is_timed_beside_sdpa(choices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    once = choices.interleaved
    monkeypatch.setattr(choices, "interleaved", lambda runs, **_: once(runs, rounds=1, min_sample=None))
    (call, *_) = choices.calls_of_text("code", 32, {})
    for dtype in (torch.float32, torch.bfloat16):
        found = choices.timed(call, "blocktopk-0.5-b8", dtype=dtype)
        assert found["speedup"] == pytest.approx(found["sdpa"] / found["seconds"])
        assert found["seconds"] > 0


def test_the_plan_counts_what_is_missing_and_tells_its_time_by_what_is_there(
    choices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "METHODS", {2048: ("dense", "a", "b"), 4096: ("dense", "a"), 8192: ("dense",)})
    monkeypatch.setattr(choices, "NOT_BY_QUALITY", ("c",))
    monkeypatch.setattr(choices, "SLOW", ())
    monkeypatch.setattr(choices, "TIMED_AT_LEAST", ())
    assert choices.plan()[:2] == [
        "mass 2048: 3 cells missing; nothing is known of its time",
        "quality 2048: 6 cells missing; nothing is known of its time",
    ]
    done = {"methods": {"dense": {"code": [1.0], "fact": [1.0]}, "other": {"code": [1.0]}},
            "seconds": {"dense": {"code": 90.0}, "other": {"code": 30.0}}}  # fmt: skip
    (tmp_path / "quality-2048.json").write_text(json.dumps(done))
    timed = {"lengths": {"4096": {"dense": {}}}, "seconds": {"dense": {"4096": 60.0}}}
    choices.time_record().write_text(json.dumps(timed))
    assert choices.plan()[1:] == [
        "quality 2048: 4 cells missing; about 4 minutes", "quality 4096: 4 cells missing; about 12 minutes",
        "quality 8192: 2 cells missing; about 18 minutes", "time 2048: 4 cells missing; nothing is known of its time",
        "time 4096: 2 cells missing; about 2 minutes", "time 8192: 2 cells missing; about 6 minutes",
    ]  # fmt: skip


def test_every_length_has_the_methods_of_the_longer_ones_and_dense_attention_first(script: Any) -> None:
    choices = script("block_choices")
    of = choices.METHODS
    assert set(of[8192]) < set(of[4096]) < set(of[2048])
    for length in choices.LENGTHS:
        assert of[length][0] == "dense"
        assert len(set(of[length])) == len(of[length])
        for kind in ("mass", "quality", "time"):
            names = choices.named(kind, length)
            assert tuple(choices.parse(name).name for name in names) == names
