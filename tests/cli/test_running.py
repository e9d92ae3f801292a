"""How commands end: a line for what a person can mend, its exit code, and no markup in either."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

import typer
from typer.testing import CliRunner

from dynattn.cli import app
from dynattn.cli.running import running
from tests.signals import default_signals


def _ending(error: BaseException):
    def command() -> None:
        with running("some", "train"):
            raise error

    one = typer.Typer()
    one.command()(command)
    return CliRunner().invoke(one, [])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a: must be b: got [/x]; pip install 'dynattn[evals]'"), "pip install 'dynattn[evals]'"),
        (ValueError("got [/x] and [bold]"), "got [/x] and [bold]"),
        (FileNotFoundError(2, "No such file or directory", "/a/[b]"), "some: /a/[b]: No such file or directory"),
        (ModuleNotFoundError("No module named 'x'"), "(No module named 'x'): pip install 'dynattn[train]'"),
        (ImportError("y must be there: pip install 'dynattn[ray]'"), "error: y must be there: pip install"),
        (RuntimeError("no backend"), "no backend"),
        (MemoryError(), "some: there must be enough memory"),
        (OSError("a: 50% [/] of it"), "a: 50% [/] of it"),
        (ValueError("a \x1b[31mred\x07 name"), r"a \x1b[31mred\x07 name"),
        (ValueError(), "some: ValueError"),
    ],
)
def test_expected_errors_are_a_line_and_code_2(error: BaseException, text: str):
    result = _ending(error)
    assert result.exit_code == 2
    assert text in result.output
    assert result.output.count("\n") == 1
    assert "Traceback" not in result.output


def test_mistakes_of_ours_and_exit_codes_pass():
    assert isinstance(_ending(KeyError("x")).exception, KeyError)
    assert _ending(typer.Exit(1)).exit_code == 1
    assert "Invalid value: b [x]" in _ending(typer.BadParameter("b [x]")).output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["compare", "--methods", "[/x]"], "[/x]"),
        (["bench", "--backend", "[/red]"], "[/red]"),
        (["bench", "--suite", "[bold]x[/bold]"], "[bold]x[/bold]"),
        (["inspect", "--file", "[/no]"], "[/no]"),
        (["lra", "--task", "[/]"], "[/]"),
        (["finetune", "--task", "[/]"], "[/]"),
        (["frontier", "--phases", "[/x]"], "[/x]"),
        (["frontier", "--tokens", "[/x]"], "[/x]"),
        (["warmup", "--arch", "[/x]"], "[/x]"),
        (["nothing[/x]"], "nothing[/x]"),
        (["compare", "--[/x]"], "--[/x]"),
    ],
)
def test_what_is_given_is_shown_as_it_is(arguments: list[str], text: str):
    pytest.importorskip("transformers")
    result = CliRunner(env={"COLUMNS": "60"}).invoke(app, arguments)
    assert result.exit_code == 2
    assert text in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_help_and_errors_are_written_in_any_encoding(encoding: str):
    runner = CliRunner(charset=encoding)
    for arguments in (["--help"], ["bench", "--help"], ["bench", "--suite", "−×日"]):
        result = runner.invoke(app, arguments)
        assert result.exit_code in (0, 2)
        assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.usefixtures("forked_python")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_ends_a_command_leaves_nothing_half_written(tmp_path, end):
    code = (
        "import sys, time, typer\n"
        "from pathlib import Path\n"
        "from dynattn.cli.running import running\n"
        "from dynattn.lab.records import reserve\n"
        "def work():\n"
        "    with running('bench'), reserve(Path(sys.argv[1])):\n"
        "        print('there', flush=True)\n"
        "        time.sleep(600)\n"
        "app = typer.Typer()\n"
        "app.command()(work)\n"
        "app(args=[])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "figures.json")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "there\n"
            assert list(tmp_path.iterdir())
            other.send_signal(end)
            _, error = other.communicate(timeout=60)
        finally:
            other.kill()
    assert list(tmp_path.iterdir()) == []
    assert other.returncode == 128 + end
    assert "Traceback" not in error
