"""What ``dynattn inspect`` does: reserve the page, load, inspect, write the page, print the layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console

from dynattn.lab.data.plaintext import read_text
from dynattn.lab.inspect import from_image, from_text, inspect
from dynattn.lab.inspect.sections import page
from dynattn.lab.inspect.subject import Subject, read_picture, refuse_image, refuse_text
from dynattn.lab.inspect.terminal import show
from dynattn.lab.models import Pretrained, facts, load
from dynattn.lab.progress import Stage
from dynattn.lab.records import reserve, write_whole
from dynattn.lab.reports import shown
from dynattn.lab.terminal import quiet_transformers, stages
from dynattn.methods import NM, parse


@dataclass(frozen=True)
class Settings:
    """What to look at.

    Args:
        text: a text; None for the file or image, else for a news article or a photograph.
        file: a file that holds the text.
        image: an image, for a vision model.
        model: a name that :func:`dynattn.lab.models.load` takes.
        method: short name of an N:M method.
        layer: draw heads of this layer; None for any.
        head: draw this head; None for the ones that keep least and most.
        tokens: cut the text after so many.

    Raises:
        ValueError: the method is no N:M method, or more than one subject is given.
    """

    text: str | None = None
    file: Path | None = None
    image: Path | None = None
    model: str = "minilm"
    method: str = "nm-2-4"
    layer: int | None = None
    head: int | None = None
    tokens: int = 512

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.text, self.file, self.image)) > 1:
            raise ValueError("inspect: there must be one subject: got several; give one of TEXT, --file and --image")
        _ = self.asked  # a method that there is not is refused here

    @cached_property
    def asked(self) -> NM:
        """The method named."""
        method = parse(self.method)
        if not isinstance(method, NM):
            raise ValueError(f"inspect: method must be an N:M method: got {self.method!r}; for example nm-2-4")
        return method


def _read(settings: Settings) -> str | None:
    """The text that was given."""
    text = settings.text if settings.file is None else read_text(settings.file)
    if text is not None and not text.strip():
        raise ValueError("inspect: the text must have words: got none; pass another, or leave it out for an article")
    if text is not None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # what a terminal in another encoding gives
            raise ValueError(
                f"inspect: the text must be characters: {text[error.start]!r} at {error.start} is half of one, or a "
                "byte in an encoding other than the terminal's; write it into a file in UTF-8, and pass --file"
            ) from error
    return text


def _check_model(settings: Settings, text: str | None) -> None:
    """Refuse, before the weights are loaded, what the model's config tells that it cannot do."""
    found = facts(settings.model)
    if found.kind not in ("encoder", "decoder", "vision"):
        refuse_text(settings.model, found.kind)
    if settings.image is not None and found.kind != "vision":
        refuse_image(settings.model, found.kind)
    if text is not None and found.kind == "vision":
        refuse_text(settings.model, found.kind)
    for what, asked, there in (("layer", settings.layer, found.layers), ("head", settings.head, found.heads)):
        if asked is not None and there is not None and asked >= there:
            raise ValueError(
                f"inspect: {what} must be one that the model has: got {asked}, {settings.model} has {there}; they go "
                f"from 0 to {there - 1}"
            )


def _subject(settings: Settings, text: str | None, pretrained: Pretrained) -> Subject:
    if settings.image is not None or (pretrained.kind == "vision" and text is None):
        return from_image(pretrained, settings.image)
    given = "A news article" if text is None else "Text given"
    title = given if settings.file is None else settings.file.name
    return from_text(pretrained, text, title, settings.tokens)


def _layers(stage: Stage, title: str) -> Callable[[int, int], None]:
    """Progress by layers done and layers there are, which are known with the first call."""
    advance: Callable[[], None] | None = None

    def show(done: int, total: int) -> None:
        nonlocal advance
        if advance is None:
            advance = stage(title, total)
        else:
            advance()

    return show


def run(settings: Settings, output: Path, console: Console) -> None:
    """Inspect, write the page, and print the layers, whether the page could be written or not.

    Args:
        settings: what to look at.
        output: the page's file.
        console: where to print.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: a name or an option is wrong, a package is missing, or a file
            cannot be read or written.
    """
    text = _read(settings)
    with reserve(output):
        _check_model(settings, text)
        if settings.image is not None:
            read_picture(settings.image)
        quiet_transformers()
        with stages(console) as stage:
            advance = stage(f"load {settings.model}", 1)
            pretrained = load(settings.model)
            advance()
            subject = _subject(settings, text, pretrained)
            found = inspect(
                pretrained, subject, settings.asked, settings.layer, settings.head,
                _layers(stage, f"measure {len(subject.labels)} tokens, layer by layer"),
            )  # fmt: skip
        with shown(lambda: show(found, console), console, output):
            write_whole(output, page(found))
