"""The scripts of decoding: what they record, and the tables that they write."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from dynattn.lab.decode.prompt import read, score
from dynattn.lab.decode.results import DecodeQuality, DecodeSpeed
from dynattn.lab.decode.ways import find
from tests.lab.decode import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.decoder()


@pytest.fixture(scope="module")
def ids():
    return tiny.tokens()


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """benchmarks/decode.py and decode_table.py, which write to a folder of the test's."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    decode, table = importlib.import_module("decode"), importlib.import_module("decode_table")
    for script in (decode, table):
        monkeypatch.setattr(script, "RESULTS", tmp_path)
    return decode, table


def test_speed_and_quality_are_recorded_and_written_as_tables(scripts, model, ids, monkeypatch, tmp_path):
    """A record that was begun is gone on with; what is not plain is not bold."""
    decode, table = scripts
    pretrained = SimpleNamespace(name="tiny", description="a tiny model", model=model)
    monkeypatch.setattr(decode, "READ", 64)
    monkeypatch.setattr(decode, "SECONDS", 0.01)
    monkeypatch.setattr(decode, "PIECE", 4)
    monkeypatch.setattr(decode, "AHEAD", 2)
    monkeypatch.setattr(decode, "_article", lambda pretrained, index, tokens: ids[:, :tokens])
    decode.speed(pretrained, 128)
    asked = [decode.Question("needle", f"depth {i}", ids.roll(i, 1), tiny.PROMPT, 15) for i in range(5)]
    monkeypatch.setattr(decode, "questions", lambda pretrained, length: asked[:2])
    every = decode.ways
    monkeypatch.setattr(decode, "ways", lambda length: every(length)[:-1])  # one is new when the record goes on
    decode.quality(pretrained, 128)
    monkeypatch.setattr(decode, "ways", every)
    monkeypatch.setattr(decode, "questions", lambda pretrained, length: asked)
    decode.quality(pretrained, 128)
    speed = DecodeSpeed.model_validate_json((tmp_path / "speed-128.json").read_text())
    quality = DecodeQuality.model_validate_json((tmp_path / "quality-128.json").read_text())
    assert [row.way for row in speed.rows] == [way.name for way in decode.ways(128) if way.read is None] + ["bare"]
    assert set(quality.items[0].nll) == {way.name for way in decode.ways(128)} - set(decode.SAME)
    assert speed.of("cache-window-32-s4").cache < speed.of("dense").cache < speed.of("dense-in-place").cache
    assert [item.item for item in quality.items] == [f"depth {i}" for i in range(5)]
    assert quality.ways == [way.name for way in decode.ways(128) if way.name not in decode.SAME]
    assert "cache-quest-32" in quality.ways
    assert all(list(item.nll) == list(item.hit) == quality.ways for item in quality.items)
    assert quality.items[3].nll["dense"] == pytest.approx(
        score(model, read(model, asked[3].ids[:, : tiny.PROMPT]), find("dense"), asked[3].ids, 15)[0]
    )
    worse = {"dense": 1.0, "nm-2-4": 1.5, "topk-0.25": 1.0}
    plain = quality.model_copy(
        update={
            "ways": list(worse),
            "items": [i.model_copy(update={"nll": {k: v + 0.01 * n for k, v in worse.items()}}) for n, i in
                      enumerate(quality.items)],
        }
    )  # fmt: skip
    text = table.tables([speed], [plain])
    assert "| `dense` | 1.020 |" in text
    assert "| `nm-2-4` | **+0.500 [+0.500, +0.500]** |" in text
    assert "| `topk-0.25` | +0.000 [+0.000, +0.000] |" in text
    assert text.index("`dense`") < text.index("`nm-2-4`") < text.index("`bare`")
    monkeypatch.setattr(decode, "ways", lambda length: [find("dense")])
    with pytest.raises(SystemExit, match="move it away"):
        decode.quality(pretrained, 128)
