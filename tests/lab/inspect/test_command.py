"""The command: its defaults, and what it refuses before a model is loaded."""

import re
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def assert_self_contained(html):
    assert html.startswith("<!doctype html>")
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
    assert "<b>bold" not in html


@pytest.mark.model
def test_the_default_of_the_command(tmp_path):
    typer_testing = pytest.importorskip("typer.testing")
    import typer

    from dynattn.cli.inspect import inspect

    app = typer.Typer()
    app.command()(inspect)
    target = tmp_path / "pages" / "page.html"
    result = typer_testing.CliRunner().invoke(app, ["--output", str(target)])
    assert result.exit_code == 0, result.output
    assert "What nm-2-4 keeps" in result.output
    html = target.read_text(encoding="utf-8")
    assert_self_contained(html)
    assert "highlands" in html
    wrong = typer_testing.CliRunner().invoke(app, ["--method", "nm-5-4", "--output", str(target)])
    assert wrong.exit_code == 2


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_text_without_words_is_refused_before_the_model_is_loaded(text: str, tmp_path: Path):
    from dynattn.lab.inspect.command import Settings, _read

    (tmp_path / "text.txt").write_text(text)
    for settings in (Settings(text=text), Settings(file=tmp_path / "text.txt")):
        with pytest.raises(ValueError, match="inspect: the text must have words: got none"):
            _read(settings)
