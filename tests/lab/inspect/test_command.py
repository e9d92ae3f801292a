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


@pytest.fixture
def not_loaded(monkeypatch):
    from dynattn.lab.inspect import command

    monkeypatch.setattr(command, "load", lambda *_: pytest.fail("the model was loaded"))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"layer": 2}, "layer must be one that the model has: got 2, .* has 2; they go from 0 to 1"),
        ({"head": 7}, "head must be one that the model has: got 7, .* has 2; they go from 0 to 1"),
        ({"image": Path("x.png")}, "--image needs a vision model: .* is of kind encoder"),
        ({"model": "dinov2", "text": "moon"}, "a text needs a text model: dinov2 is of kind vision; pass --image"),
        ({"model": "whisper"}, "a text needs a text model: whisper is of kind speech"),
        ({"model": "minilm", "layer": 6}, "layer must be one that the model has: got 6, minilm has 6"),
        ({"model": "minlm"}, "did you mean minilm"),
    ],
)
def test_what_the_config_tells_is_refused_before_the_model_is_loaded(
    asked: dict, words: str, tiny_encoder: Path, tmp_path: Path, not_loaded
):
    from dynattn.lab.inspect.command import Settings, run
    from dynattn.lab.terminal import console

    with pytest.raises(ValueError, match=words):
        run(Settings(**({"model": str(tiny_encoder)} | asked)), tmp_path / "page.html", console(quiet=True))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", None])
def test_what_is_no_image_is_refused_before_the_model_is_loaded(content: bytes | None, tmp_path: Path, not_loaded):
    from dynattn.lab.inspect.command import Settings, run
    from dynattn.lab.terminal import console

    image = tmp_path / "x.png"
    image.mkdir() if content is None else image.write_bytes(content)
    with pytest.raises(ValueError, match=r"inspect: .*x\.png must be an image"):
        run(Settings(model="dinov2", image=image), tmp_path / "page.html", console(quiet=True))


def test_a_text_of_half_characters_is_refused_before_the_model_is_loaded(tmp_path: Path, not_loaded):
    from dynattn.lab.inspect.command import Settings, run
    from dynattn.lab.terminal import console

    with pytest.raises(ValueError, match=r"the text must be characters: '\\udcff' at 5 is half of one"):
        run(Settings(text="moon \udcff river"), tmp_path / "page.html", console(quiet=True))


def test_a_text_that_the_tokenizer_does_not_know_is_refused(tiny_encoder: Path, tmp_path: Path):
    from dynattn.lab.inspect.command import Settings, run
    from dynattn.lab.terminal import console

    with pytest.raises(ValueError, match=r"inspect: the tokenizer must know the texts: .* unknown tokens of 100%"):
        run(Settings(model=str(tiny_encoder), text="qq ww"), tmp_path / "page.html", console(quiet=True))


@pytest.mark.parametrize("text", ["moon", "moon moon", "moon " * 9])
def test_texts_whose_scores_have_no_spread_have_a_page(text: str, tiny_decoder: Path, tmp_path: Path):
    from typer.testing import CliRunner

    from dynattn.cli import app

    target = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["inspect", text, "--model", str(tiny_decoder), "--output", str(target)])
    assert result.exit_code == 0, result.output
    assert_self_contained(target.read_text(encoding="utf-8"))


@pytest.mark.parametrize("which", ["tiny_encoder", "tiny_decoder"])
def test_a_text_is_cut_to_what_the_model_takes(which: str, request: pytest.FixtureRequest):
    """Tokenizers need not know how much that is."""
    from dynattn.lab.inspect import from_text
    from dynattn.lab.models import load

    pretrained = load(str(request.getfixturevalue(which)))
    pretrained.processor.model_max_length = 10**30
    subject = from_text(pretrained, "moon " * 999, "moons", 512)
    assert len(subject.labels) == pretrained.model.config.max_position_embeddings < 512
    assert subject.title.endswith("(cut)")
