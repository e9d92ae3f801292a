"""What is printed: as it is, whole at any width, in any encoding, at once."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("rich")

from rich.text import Text

from dynattn.lab.terminal import Grid, console, print_grid, printable, quiet_transformers, say, stages

INTERVAL = "−0.0013 [−0.0122, +0.0091]"
GRID = Grid(
    "all-[/x]MiniLM: a [bold]title[/bold] :smile:",
    ("method", "attention", "model", "batch 8", "retrieval\nMRR@10", "retrieval\nless dense [95%]",
     "manpages\nMRR@10", "manpages\nless dense [95%]", "peak\nMiB", "kept\nmass"),
    [
        [name, "1.50×", "1.20×", "–", "0.6810", Text(INTERVAL, "red"), "0.7000", INTERVAL, "123", "0.953"]
        for name in ("SDPA (dense)", "1:2, stride 16, window 64, 4 sinks", "topk-[/x]")
    ],
)  # fmt: skip


class Stream(io.TextIOWrapper):
    """A stream of a terminal or a pipe; what was written, and whether all of it was flushed."""

    def __init__(self, encoding: str = "utf-8", terminal: bool = False) -> None:
        self._terminal = terminal
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return self._terminal

    @property
    def written(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_tables_are_whole_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Stream()
    print_grid(console(stream), GRID)
    stream.flush()
    lines = stream.written.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in stream.written
    assert stream.written.count(INTERVAL) == 6 or width < 60
    for row in GRID.rows:
        assert any(line.startswith(str(row[0])) for line in lines) or width < 60
    words = " ".join(stream.written.split())
    for heading in GRID.columns[1:]:
        assert all(part in words for part in heading.split())
    assert "[bold]title[/bold] :smile:" in words
    assert "topk-[/x]" in words
    assert stream.written.count("title") == 1


def test_one_table_where_all_columns_fit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    stream = Stream()
    print_grid(console(stream), GRID)
    stream.flush()
    assert stream.written.count("SDPA (dense)") == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_what_an_encoding_lacks_is_spelled_by_what_it_has(encoding: str):
    stream = Stream(encoding)
    screen = console(stream)
    print_grid(screen, GRID)
    say(screen, f"日本 {INTERVAL} 12×64 384–4096")
    stream.flush()
    plain = INTERVAL.replace("−", "-")
    assert plain in stream.written
    assert "?? " + plain in stream.written
    assert "384-4096" in stream.written.replace("–", "-")


def test_lines_are_never_broken_and_hold_no_markup(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Stream()
    path = "/a/[b]/" + "long" * 20 + "/[/x]\x1b[2J"
    say(console(stream), path)
    stream.flush()
    assert stream.written == path.replace("\x1b", "\\x1b") + "\n"
    assert printable("a\tb\nc\x9bd\x7f é日") == "a\tb\nc\\x9bd\\x7f é日"


def test_progress_is_written_at_once_where_nothing_can_be_redrawn():
    stream = Stream()
    with stages(console(stream)) as stage:
        advance = stage("load [/x]", 2)
        assert stream.written == "load [/x]\n"  # flushed
        advance()
        advance()
        stage("measure", 1)()
    assert stream.written == "load [/x]\nmeasure\n"


def test_long_stages_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch):
    from dynattn.lab import terminal

    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    stream = Stream()
    with stages(console(stream)) as stage:
        advance = stage("quality", 5)
        for _ in range(5):
            advance()
    assert stream.written.splitlines() == ["quality", "quality: 2 of 5, 12 s", "quality: 4 of 5, 24 s"]


def test_bars_in_a_terminal_show_titles_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    for redraw in (True, False):
        stream = Stream(terminal=True)
        with stages(console(stream), redraw) as stage:
            for number in range(12):
                stage(f"[/x] {number}", 1)()
        stream.flush()
        assert "[/x] 11" in stream.written
        assert "1/1" in stream.written


def test_transformers_does_not_warn_of_texts_before_they_are_cut(capfd: pytest.CaptureFixture[str]):
    logging = pytest.importorskip("transformers.utils.logging")
    level = logging.get_verbosity()
    try:
        logging.set_verbosity_warning()
        quiet_transformers()
        logging.get_logger("transformers.tokenization").warning("this will result in indexing errors")
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
    assert capfd.readouterr().err == ""
