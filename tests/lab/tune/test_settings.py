"""What is asked for is refused before any work where it cannot be."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("rich")
pytest.importorskip("transformers")

from dynattn.cli import app
from dynattn.cli.tune import _share, share
from dynattn.lab.tasks.texts import Text
from dynattn.lab.tune.settings import Settings


@pytest.mark.parametrize("loss", [0, -0.01, 1.01, math.nan, math.inf])
def test_a_tolerance_that_no_proof_can_keep_is_refused(loss):
    with pytest.raises(ValueError, match="above 0% and at most 100%"):
        Settings("m", max_loss=loss)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"phase": "training"}, "phase must be"),
        ({"max_loss": 1e-322}, "max-loss must be at least 1e-09"),
        ({"length": 3}, "between 16 and 16777215 tokens: got 3"),
        ({"length": 2**24}, "between 16 and 16777215 tokens: got 16777216"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"minutes": 0}, "minutes must be between"),
        ({"minutes": math.nan}, "minutes must be between"),
        ({"task": "mine:make", "phase": "decode"}, "--task is of the prefill phase"),
        ({"task": "module:"}, "module:function"),
        ({"task": ":make"}, "module:function"),
        ({"task": ""}, "module:function"),
    ],
)
def test_values_out_of_range_are_refused(given, rule):
    with pytest.raises(ValueError, match=rule):
        Settings("m", **given)


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.01", 0.01), ("100%", 1), (" 2.5 % ", 0.025), ("1", 1)])
def test_a_share_is_given_in_per_cent_or_as_it_is(text, value):
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["0%", "0", "-1%", "101%", "1.5", "a lot", "٣%", "nan", "", "1%%", "inf"])
def test_shares_that_cannot_be_are_refused_at_the_command_line(text):
    with pytest.raises(typer.BadParameter, match="above 0%"):
        _share(_param(), text)


def _param() -> typer.CallbackParam:
    class Param:
        name = "max_loss"

    return Param()  # type: ignore[return-value]


def test_runs_are_told_apart_by_what_decides_their_results():
    one = Settings("m", texts=Path("a"))
    texts = (Text("t", "body"),)
    assert one.digest(texts, 1) == Settings("m", texts=Path("b")).digest(texts, 1)  # the same texts elsewhere
    others = [
        one.digest((Text("t", "other"),), 1),
        one.digest(texts, 2),
        Settings("m", texts=Path("a"), max_loss=0.02).digest(texts, 1),
        Settings("m", texts=Path("a"), minutes=7).digest(texts, 1),
    ]
    assert len({one.digest(texts, 1), *others}) == 5


@pytest.mark.parametrize(("given", "workers"), [([], None), (["--workers", "2"], 2), (["--workers", "1"], 1)])
def test_how_many_workers_is_left_open_unless_it_is_said(given, workers, monkeypatch):
    for package in ("matplotlib", "jinja2"):  # the command's
        pytest.importorskip(package)
    taken = []
    monkeypatch.setattr("dynattn.lab.tune.command.run", lambda *arguments: taken.append(arguments[3:]))
    result = CliRunner().invoke(app, ["tune", "smollm2", "--ray", *given])
    assert result.exit_code == 0, result.output
    assert taken == [(workers, True)]
