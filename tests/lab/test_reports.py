"""What the runners of all commands share: files are reserved first, and what was measured is shown in any case."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("rich")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from dynattn.lab.bench import command as bench
from dynattn.lab.compare import command as compare
from dynattn.lab.finetune import command as finetune
from dynattn.lab.frontier import command as frontier
from dynattn.lab.inspect import command as inspect
from dynattn.lab.terminal import console

FOUND = SimpleNamespace(name="n", failures={}, results=())


def _compare(output: Path, screen, monkeypatch, work) -> None:
    monkeypatch.setattr(compare, "compare", lambda settings, stage: work())
    compare.run(compare.Settings("m"), output, screen)


def _finetune(output: Path, screen, monkeypatch, work) -> None:
    finetune.present(lambda stage: work(), output, "finetune", screen)


def _frontier(output: Path, screen, monkeypatch, work) -> None:
    monkeypatch.setattr(frontier, "sweep", lambda settings, path, stage, runner: work())
    frontier.run(frontier.Settings("m"), output, 1, False, screen)


def _bench(output: Path, screen, monkeypatch, work) -> None:
    monkeypatch.setattr(bench, "_measure", lambda settings, here, stage: work())
    bench.run(bench.Settings(), output / "b.json", output / "b.html", screen)


def _inspect(output: Path, screen, monkeypatch, work) -> None:
    monkeypatch.setattr(inspect, "load", lambda name: work())
    monkeypatch.setattr(inspect, "_check_model", lambda *_: None)
    monkeypatch.setattr(inspect, "_subject", lambda *_: SimpleNamespace(labels=()))
    monkeypatch.setattr(inspect, "inspect", lambda *_: FOUND)
    inspect.run(inspect.Settings(model="m"), output / "i.html", screen)


COMMANDS = [(_compare, compare), (_finetune, finetune), (_frontier, frontier), (_bench, bench), (_inspect, inspect)]


@pytest.mark.parametrize(("run", "module"), COMMANDS)
def test_an_output_that_cannot_be_written_is_noticed_before_the_work(run, module, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    done = []
    with pytest.raises(OSError, match="another --output"):
        run(tmp_path / "file" / "sub", console(io.StringIO()), monkeypatch, lambda: done.append(1))
    assert not done


@pytest.mark.parametrize(("run", "module"), COMMANDS)
def test_what_was_measured_is_shown_where_it_cannot_be_written(run, module, tmp_path, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    for writer in ("write_record", "write_whole", "save"):
        if hasattr(module, writer):
            monkeypatch.setattr(module, writer, full)
    shown = []
    monkeypatch.setattr(module, "show", lambda found, screen: shown.append(found))
    monkeypatch.setattr(module, "page", lambda found: "page")
    stream = io.StringIO()
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, console(stream), monkeypatch, lambda: FOUND)
    assert shown == [FOUND]
    assert "report" not in stream.getvalue()  # none was written


@pytest.mark.parametrize(("run", "module"), COMMANDS)
def test_a_page_that_cannot_be_drawn_leaves_the_figures(run, module, tmp_path, monkeypatch):
    def broken(found) -> str:
        raise RuntimeError("no page")

    kept, shown = [], []
    for writer in ("write_record", "save"):
        if hasattr(module, writer):
            monkeypatch.setattr(module, writer, lambda *given: kept.append(given))
    monkeypatch.setattr(module, "show", lambda found, screen: shown.append(found))
    monkeypatch.setattr(module, "page", broken)
    with pytest.raises(RuntimeError, match="no page"):
        run(tmp_path, console(io.StringIO()), monkeypatch, lambda: FOUND)
    assert shown == [FOUND]
    assert kept or run in (_frontier, _inspect)  # the sweep writes its record as it goes; an inspection has none
