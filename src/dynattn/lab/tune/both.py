"""``dynattn tune --phase both``: prefill, then decoding, each searched, proved and raced apart; one file for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from rich.console import Console

from dynattn.integrations.transformers import Tuned
from dynattn.lab.figures import Record
from dynattn.lab.machine import describe
from dynattn.lab.models import Pretrained
from dynattn.lab.page import render
from dynattn.lab.progress import Stage
from dynattn.lab.tasks.texts import Text
from dynattn.lab.terminal import say
from dynattn.lab.tune import decode, decode_told, document, terminal, write
from dynattn.lab.tune.ahead import Ahead
from dynattn.lab.tune.begin import Begun, begin
from dynattn.lab.tune.clock import Clock
from dynattn.lab.tune.decode import Decoding
from dynattn.lab.tune.results import Tuning
from dynattn.lab.tune.run import Run
from dynattn.lab.tune.settings import LEAST_LENGTH, Settings
from dynattn.lab.tune.store import Store


class Both(Record):
    """A run of both phases.

    Attributes:
        prefill: what was found for prefill.
        decode: what was found for decoding.
    """

    prefill: Tuning
    decode: Decoding
    version: Literal[1] = 1

    @property
    def verdict(self) -> str:
        """``faster`` where one of the phases is."""
        return "faster" if "faster" in (self.prefill.verdict, self.decode.verdict) else "dense"


def tune(
    settings: Settings, texts: Sequence[Text] | None, pretrained: Pretrained, stores: tuple[Store, Store], stage: Stage,
    clocks: tuple[Clock, Clock], ahead: Callable[[Begun], Ahead],
) -> Both:  # fmt: skip
    """Tune prefill, and then decoding after a prompt that was read densely.

    Args:
        settings: what was asked for.
        texts: the user's own; None for Wikipedia articles.
        pretrained: a decoder.
        stores: of results, one a phase.
        stage: shows progress.
        clocks: tell the time that is left, for prefill and for all.
        ahead: measures prefill in other processes.

    Raises:
        ValueError: the model is no decoder, a length, the texts or the minutes do not suffice.
    """
    given = None if texts is None else tuple(texts)
    if pretrained.kind != "decoder" or settings.length is not None:  # refused before anything is timed
        decode.Run(settings, given, pretrained, stores[1], stage, clocks[1])
    begun = begin(settings, given, pretrained, stores[0], clocks[0])
    room = decode.room(pretrained)
    length = begun.length if room is None or room < LEAST_LENGTH else min(begun.length, room)
    after = decode.Run(settings, given, pretrained, stores[1], stage, clocks[1], length)
    with ahead(begun) as others:
        prefill = Run(replace(settings, phase="prefill"), begun, stores[0], stage, clocks[0], others).tune()
    return Both(prefill=prefill, decode=after.tune())


def show(found: Both, console: Console) -> None:
    """Print what was found, phase by phase."""
    say(console, "")
    say(console, "Prefill")
    terminal.show(found.prefill, console)
    say(console, "")
    say(console, "Decoding")
    decode_told.show(found.decode, console)


def page(found: Both) -> str:
    """The report, one HTML text."""
    made = [
        each._replace(title=f"{phase}: {each.title}")
        for phase, its in (
            ("Prefill", document.sections(found.prefill)),
            ("Decoding", decode_told.sections(found.decode)),
        )
        for each in its
    ]
    first = found.prefill
    title = f"{first.model}, tuned" if found.verdict == "faster" else f"{first.model}: keep dense attention"
    return render(title, f"{first.description}. {describe(first.machine)}", made)


def tuned(found: Both, pretrained: Pretrained) -> Tuned:
    """What the file says: methods for prefill, and the cache with the method over it for decoding.

    Where one phase alone became faster, the file is that phase's.
    """
    if found.decode.verdict != "faster":
        return write.tuned(found.prefill, pretrained)
    if found.prefill.verdict != "faster":
        return decode_told.tuned(found.decode, pretrained)
    cache, decoding = decode_told.attends(found.decode)
    first = write.tuned(found.prefill, pretrained)
    return replace(
        first, cache=cache, decoding=decoding, linears={**first.linears, **decode_told.linears(found.decode)},
        evidence=(*write.evidence(found.prefill), *decode_told.evidence(found.decode)),
    )  # fmt: skip
