"""The script that holds decoding against the speed of memory, on tiny shapes."""

import importlib
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("decode_memory")


def test_a_trial_is_a_record_with_every_row(script: Any) -> None:
    record = script.measure(script.TRIAL, 0.01)
    wanted = [
        (threads, *step, name)
        for threads in (1, 2)
        for step in script.TRIAL
        for name in ("read", "sdpa", *script.METHODS)
    ]
    assert [(*script._key(row), row["method"]) for row in record["rows"]] == wanted
    assert all(row["seconds"]["median"] > 0 for row in record["rows"])
    assert {row["bytes"] for row in record["rows"]} == {2 * 2 * 2 * 300 * 64, 2 * 2 * 2 * 100 * 32}
    text = script.table(record)
    assert text.count("\n| ") == 2 + len(script.TRIAL) * len(script.METHODS)
    assert "4 on 2, 1 × 300, 64" in text


def test_a_share_is_of_the_read_in_its_own_rounds(script: Any) -> None:
    spread = {"median": 0.5, "q1": 0.4, "q3": 0.6}
    step = {"heads": 8, "kv_heads": 8, "queries": 1, "keys": 1000, "head_dim": 64, "bytes": 2e6}
    rows = [
        {"threads": threads, **step, "method": method, "seconds": {"median": 1e-3 * threads}, "share_of_read": spread,
         "speedup": {"median": 7.0}}
        for threads in (1, 2) for method in ("read", "sdpa", "dense")
    ]  # fmt: skip
    line = script.table({"machine": script.machine(), "rows": rows}).splitlines()[-1]
    assert "| 1.0 ms, 0.50 (0.40–0.60) of 2 GB/s; 7.0× | 2.0 ms, 0.50 (0.40–0.60) of 1 GB/s; 7.0× |" in line


def test_the_page_has_the_records(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = script.PAGE.read_text()
    page = tmp_path / "page.md"
    page.write_text(written)
    monkeypatch.setattr(script, "PAGE", page)
    script.main(["table"])
    assert page.read_text() == written


def test_what_disagrees_is_not_timed(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "AGREE", -1.0)
    with pytest.raises(RuntimeError, match="must agree with float32"):
        script.measure(script.TRIAL, 0.01)
