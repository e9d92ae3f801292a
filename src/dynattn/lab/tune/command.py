"""What ``dynattn tune`` does: refuse what cannot be, tune, write the model's file, the record and the page, print."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from dynattn.integrations.transformers import Fingerprint, attention_modules
from dynattn.lab.machine import machine
from dynattn.lab.models import load
from dynattn.lab.records import alone, reserve, slug, write_record, write_whole
from dynattn.lab.reports import shown
from dynattn.lab.terminal import quiet_transformers, say, stages
from dynattn.lab.tune import decode, decode_told
from dynattn.lab.tune.begin import begin, given
from dynattn.lab.tune.clock import Clock
from dynattn.lab.tune.decode import Decoding
from dynattn.lab.tune.document import page
from dynattn.lab.tune.own import written
from dynattn.lab.tune.results import Tuning
from dynattn.lab.tune.run import Run
from dynattn.lab.tune.settings import Settings
from dynattn.lab.tune.store import Store
from dynattn.lab.tune.terminal import show
from dynattn.lab.tune.write import tuned

_SECONDS_A_MINUTE = 60.0


def run(settings: Settings, output: Path, console: Console) -> Tuning | Decoding:
    """Tune, write ``model.dynattn.json``, ``tune.json`` and ``tune.html`` into a folder of the model's, and print.

    Where dense attention is to be kept there is no ``model.dynattn.json``. The folder of ``--phase decode`` ends in
    ``-decode``.

    Args:
        settings: what to tune.
        output: folder in which the model's is made.
        console: where to print.

    Returns:
        The record.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: something that is asked for cannot be, data or a package is
            missing, or a file cannot be written.
    """
    clock = Clock(settings.minutes * _SECONDS_A_MINUTE)
    ending = "" if settings.phase == "prefill" else f"-{settings.phase}"
    folder = output / f"tune-{slug(Path(settings.model).name or settings.model)}{ending}"
    model, record, report, stages_file = (
        folder / name for name in ("model.dynattn.json", "tune.json", "tune.html", "stages.json")
    )
    with alone(folder), reserve(model, record, report, stages_file):
        texts = given(settings)
        quiet_transformers()
        with stages(console) as stage:
            advance = stage(f"load {settings.model}", 1)
            pretrained = load(settings.model, settings.dtype)
            weights = Fingerprint.of(pretrained.model, len(attention_modules(pretrained.model))).weights
            task = None if settings.task is None else written(settings.task)
            store = Store(stages_file, settings.digest(texts, [weights, torch.get_num_threads(), _here(), task]))
            if settings.phase == "decode":
                advance()
                found = decode.Run(settings, texts, pretrained, store, stage, clock).tune()
            else:
                begun = begin(settings, texts, pretrained, store, clock)
                advance()
                found = Run(settings, begun, store, stage, clock).tune()
        if isinstance(found, Decoding):
            told = partial(decode_told.show, found), partial(decode_told.tuned, found), partial(decode_told.page, found)
        else:
            told = partial(show, found), partial(tuned, found), partial(page, found)
        in_words, as_file, as_page = told
        with shown(lambda: in_words(console), console, report, record):
            write_record(found, record)
            model.unlink(missing_ok=True)  # of a run before, with other settings
            if found.verdict == "faster":
                as_file(pretrained).save(model)
            write_whole(report, as_page())
    if found.verdict == "faster":
        say(console, f"model   {model}")
    return found


def _here() -> list[str | None]:
    """What times depend on."""
    facts = machine()
    return [facts["processor"], facts["isa"], facts["torch"], facts["dynattn"], os.environ.get("OMP_NUM_THREADS")]
