"""The script that looks for calls slower than PyTorch's attention, on tiny workloads."""

import importlib
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
METHODS = ("dense", "blocktopk-0.5-b8")


@pytest.fixture
def never_slower(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("never_slower")


def tiny(script: Any) -> list[Any]:
    """A workload of each kind."""
    square = script.Workload(2, 2, 20, 20, 8, "float32")
    return [
        square,
        square._replace(causal=True, dtype="bfloat16"),
        *(square._replace(mask=mask) for mask in ("padding", "pairs", "bias")),
        square._replace(training=True),
        square._replace(kv_heads=1, q_len=1),
    ]


def test_a_record_has_every_row_and_its_backend(never_slower: Any) -> None:
    record = never_slower.measure(tiny(never_slower), METHODS, 0.001, (1, 2))
    assert [row["threads"] for row in record["rows"]] == [1] * 7 + [2] * 7
    for row in record["rows"]:
        assert list(row["times"]) == ["sdpa", *METHODS]
        assert row["backends"]["blocktopk-0.5-b8"] == "cpu"
        assert all(timing["seconds"]["median"] > 0 for timing in row["times"].values())
    text = never_slower.table(record)
    assert text.count("### ") == 4
    assert "| 2×20×8, pairs mask |" in text
    assert "| 2 on 1×1 on 20×8 |" in text


def test_what_is_slow_is_listed_and_bold(never_slower: Any) -> None:
    square = tiny(never_slower)[0]
    times = {
        name: {"seconds": {"median": 1e-4}, "speedup": {"median": speedup, "q1": speedup, "q3": speedup}}
        for name, speedup in (("sdpa", 1.0), ("dense", 0.94), ("nm-1-2", 0.95))
    }
    row = {"threads": 1, **square._asdict(), "backends": {"dense": "cpu", "nm-1-2": "cpu"}, "times": times}
    record = {"machine": never_slower.machine(), "rows": [row]}
    (line,) = never_slower.slow(record).splitlines()
    assert "dense" in line
    assert "1 of 2 below 0.95" in never_slower.table(record)
    assert "| 2×20×8 | 100 µs | **0.94** | 0.95 |" in never_slower.table(record)


def test_the_grid_has_what_it_promises(never_slower: Any) -> None:
    grid = never_slower.workloads()
    assert len(set(grid)) == len(grid)
    for dtype in ("bfloat16", "float32"):
        of_dtype = [at for at in grid if at.dtype == dtype]
        plain = {(at.heads, at.q_len, at.head_dim) for at in of_dtype if not (at.mask or at.training or at.q_len == 1)}
        assert plain == set(never_slower.SHAPES)
        assert {at.mask for at in of_dtype} == {"", "padding", "pairs", "bias"}
        assert any(at.training for at in of_dtype)
        assert {at.kv_len for at in of_dtype if at.q_len == 1} == set(never_slower.DECODED)


def test_an_output_that_is_wrong_is_not_timed(never_slower: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(never_slower, "AGREE", -1.0)
    with pytest.raises(RuntimeError, match="must agree with the definition"):
        never_slower.measure(tiny(never_slower)[:1], METHODS, 0.001, (1,))


def test_the_page_has_the_records(never_slower: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = never_slower.PAGE.read_text()
    page = tmp_path / "page.md"
    page.write_text(written)
    monkeypatch.setattr(never_slower, "PAGE", page)
    never_slower.main(["table"])
    assert page.read_text() == written
