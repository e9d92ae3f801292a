"""Numbers that no command can work with are refused before any work, with the rule and what was given."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.main import get_command
from typer.testing import CliRunner

from dynattn.cli import app
from dynattn.cli.options import _threads, counted, shares, timed

COUNTS = {
    "compare": ("--items", "--tokens", "--batch", "--threads"),
    "bench": ("--threads", "--rounds"),
    "inspect": ("--tokens",),
    "finetune": ("--items", "--tokens", "--batch", "--threads", "--seeds", "--steps"),
    "frontier": ("--items", "--tokens", "--workers", "--threads"),
    "lra": ("--batch", "--threads", "--seeds", "--steps"),
    "warmup": ("--jobs", "--head-dims"),
}
SECONDS = ("compare", "bench", "frontier")


def _refused(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize("value", ["0", "-1", "99999999999999999999", "1" * 5000, "2.5", "nan", "x"])
@pytest.mark.parametrize("given", [(command, option) for command, options in COUNTS.items() for option in options])
def test_counts_are_whole_numbers_in_range(given: tuple[str, str], value: str):
    command, option = given
    assert option in _refused(command, f"{option}={value}")


@pytest.mark.parametrize(
    ("check", "value"), [(counted(), 1), (counted(most=9), 9), (counted(0), 0), (timed(), 604800.0)]
)
def test_the_ends_of_a_range_are_in_it(check: Any, value: float):
    assert check(None, value) == value


def test_a_share_may_be_all_of_it_and_threads_as_many_as_are_allowed():
    assert shares(None, "1,0.5") == "1,0.5"  # type: ignore[arg-type]
    assert _threads(None, 16 * (os.cpu_count() or 1)) == 16 * (os.cpu_count() or 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["0", "-1", "inf", "-inf", "nan", "1e400", "1e300", "x"])
@pytest.mark.parametrize("command", SECONDS)
def test_seconds_are_finite_and_positive(command: str, value: str):
    if (command, value) != ("frontier", "0"):  # which times nothing
        assert "--seconds" in _refused(command, f"--seconds={value}")


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan"])
@pytest.mark.parametrize("command", ["finetune", "lra"])
def test_learning_rates_are_finite_and_positive(command: str, value: str):
    assert "learning_rate must be positive and finite" in _refused(command, f"--learning-rate={value}")


@pytest.mark.parametrize("value", ["0", "-0.5", "1.5", "inf", "nan", "x", "0.5,0"])
def test_budgets_are_shares(value: str):
    assert "budgets must be numbers above 0 and up to 1" in _refused("frontier", f"--budgets={value}")


@pytest.mark.parametrize(("value", "rule"), [
    ("0", "above 0%"), ("0%", "above 0%"), ("-1%", "above 0%"), ("101%", "at most 100%"), ("much", "above 0%"),
    ("1", "from 1 on: got '1', .* write 1% or a share"), ("2.5", "write 2.5% or a share"),
])  # fmt: skip
def test_a_loss_is_a_share_and_no_count_of_percents(value: str, rule: str):
    """A bare 1 would be all that there is to lose, where 1% was meant."""
    assert re.search(rule, _refused("tune", "smollm2", f"--max-loss={value}"))


@pytest.mark.parametrize("command", ["compare", "bench", "finetune", "frontier", "lra"])
def test_more_threads_than_cores_can_use_are_refused(command: str):
    cores = os.cpu_count() or 1
    text = _refused(command, "--threads", "100000")
    assert f"threads must be at most 16 for each of the {cores} cores here, {16 * cores}: got 100000" in text


def test_layers_and_heads_are_counted_from_0():
    assert "layer must be at least 0" in _refused("inspect", "--layer=-1")
    assert "head must be at least 0" in _refused("inspect", "--head=-1")


def test_output_must_be_a_name_that_can_be_written():
    assert "output must be a name in UTF-8" in _refused("compare", "--output", os.fsdecode(b"a\xff"))


WRONG = {
    "compare": (["--text=no"], ["--text={folder}"], ["--model=minilmm"], ["--tasks=x"], ["--output={file}"]),
    "finetune": (["--text=no"], ["--text={folder}"], ["--model=minilmm"], ["--task=x"], ["--output={file}"]),
    "frontier": (["--text=no"], ["--text={folder}"], ["--model=minilmm"], ["--tasks=x"], ["--output={file}"]),
    "tune": (
        ["minilm", "--texts=no"], ["minilm", "--texts={folder}"], ["minilmm"], ["minilm", "--output={file}"],
        ["minilm", "--texts={folder}", "--task=m:f"], ["dinov2", "--texts={texts}"], ["whisper", "--length=64"],
    ),
    "inspect": (["--model=minilmm"], ["--output={file}/page.html"], ["--image={file}"]),
    "bench": (["--output={file}/a.json"], ["--report={file}/a.html"]),
    "lra": (["--task=x"], ["--output={file}"]),
}  # fmt: skip


@pytest.mark.parametrize(("command", "arguments"), [(name, given) for name, each in WRONG.items() for given in each])
def test_errors_name_options_that_the_command_has(command: str, arguments: list[str], tmp_path: Path):
    pytest.importorskip("transformers")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").symlink_to("nowhere")
    for name in ("file", "texts"):
        (tmp_path / name).write_text("Some words.")
    places = {name: tmp_path / name for name in ("folder", "file", "texts")}
    said = _refused(command, *(each.format(**places) for each in arguments))
    known = {option for param in get_command(app).commands[command].params for option in param.opts}  # type: ignore[attr-defined]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", said))
    assert named <= known | {"--help"}
    assert (
        named
        or "spelling of MODEL" in said
        or "did you mean minilm?" in said
        or {"--task=m:f", "--image={file}"} & set(arguments)
    ), said
