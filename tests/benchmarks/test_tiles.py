"""The script that measures the tile kernels, on tiny shapes by the portable engine."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from dynattn.kernels.cpu import isas

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("tiles")


def test_a_trial_is_a_record_with_every_row(tiles: Any) -> None:
    record = tiles.measure(tiles.TRIAL, "cpu-tiles-portable", 0.01)
    wanted = [
        (threads, list(shape), name)
        for threads in (1, 2)
        for shape, methods in tiles.TRIAL.items()
        for name in ("sdpa", *methods)
    ]
    assert [(row["threads"], row["shape"], row["method"]) for row in record["rows"]] == wanted
    assert all(row["seconds"]["median"] > 0 for row in record["rows"])
    text = tiles.table(record)
    assert text.count("\n| ") == 2 + len(wanted) // 2  # a line for both numbers of threads
    assert "blocktopk-0.5-b16" in text


def test_the_page_has_the_records(tiles: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = tiles.PAGE.read_text()
    page = tmp_path / "page.md"
    page.write_text(written)
    monkeypatch.setattr(tiles, "PAGE", page)
    tiles.main(["table"])
    assert page.read_text() == written


def test_a_kernel_that_disagrees_is_not_timed(tiles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "AGREE", -1.0)
    with pytest.raises(RuntimeError, match="must agree with the definition"):
        tiles.measure(tiles.TRIAL, "cpu-tiles-portable", 0.01)


def test_without_an_engine_it_says_so(tiles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isas, "tile_isa", lambda: None)
    with pytest.raises(SystemExit, match="no tile engine"):
        tiles.main([])
