"""What ``dynattn tune`` does: refuse what cannot be, tune, write the model's file, the record and the page, print."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console

from dynattn.integrations.transformers import Fingerprint, Tuned, attention_modules
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.records import alone, reserve, slug, write_record, write_whole
from dynattn.lab.reports import shown
from dynattn.lab.sources import fingerprint
from dynattn.lab.terminal import quiet_transformers, say, stages
from dynattn.lab.tune import both, decode, decode_told
from dynattn.lab.tune.ahead import Ahead, Job
from dynattn.lab.tune.begin import Begun, begin, given
from dynattn.lab.tune.both import Both
from dynattn.lab.tune.clock import Clock
from dynattn.lab.tune.decode import Decoding
from dynattn.lab.tune.document import page
from dynattn.lab.tune.own import written
from dynattn.lab.tune.results import Tuning
from dynattn.lab.tune.run import Run
from dynattn.lab.tune.settings import Settings, share_of_prefill
from dynattn.lab.tune.store import Store
from dynattn.lab.tune.terminal import show
from dynattn.lab.tune.write import tuned

_SECONDS_A_MINUTE = 60.0


def run(
    settings: Settings, output: Path, console: Console, workers: int | None = None, ray: bool = False
) -> Tuning | Decoding | Both:
    """Tune, write ``model.dynattn.json``, ``tune.json`` and ``tune.html`` into a folder of the model's, and print.

    Where dense attention is to be kept there is no ``model.dynattn.json``. The folder of ``--phase decode`` ends in
    ``-decode``, that of ``--phase both`` in ``-both``.

    Args:
        settings: what to tune.
        output: folder in which the model's is made.
        console: where to print.
        workers: processes for what can be measured apart, among which torch's threads are divided; None for none but
            this one, or, with ``ray``, for one for each CPU of the cluster.
        ray: measure it on a Ray cluster.

    Returns:
        The record.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: something that is asked for cannot be, data or a package is
            missing, or a file cannot be written.
    """
    if settings.phase == "decode" and ((workers or 1) > 1 or ray):
        raise ValueError("tune: --workers and --ray are of the prefill phase: leave them or --phase decode out")
    if ray and find_spec("ray") is None:
        raise ImportError("tune: --ray needs Ray: pip install 'dynattn[ray]', or leave it out for --workers")
    seconds = settings.minutes * _SECONDS_A_MINUTE
    clock, prefill = Clock(seconds), Clock(seconds * share_of_prefill(settings.phase))
    ending = "" if settings.phase == "prefill" else f"-{settings.phase}"
    folder = output / f"tune-{slug(Path(settings.model).name or settings.model)}{ending}"
    names = ("model.dynattn.json", "tune.json", "tune.html", "stages.json", "stages-decode.json")
    model, record, report, stages_file, decode_stages = (folder / name for name in names)
    with _tidy(folder), alone(folder), reserve(model, record, report, stages_file):
        texts = given(settings)
        quiet_transformers()
        with stages(console) as stage:
            advance = stage(f"load {settings.model}", 1)
            pretrained = load(settings.model, settings.dtype)
            weights = Fingerprint.of(pretrained.model, len(attention_modules(pretrained.model))).weights
            task = None if settings.task is None else written(settings.task)
            key = settings.digest(texts, [weights, torch.get_num_threads(), _here(), task, fingerprint()])
            store = _store(stages_file, key, console)

            def ahead(begun: Begun) -> Ahead:
                job = Job(
                    settings.model, settings.dtype, texts, begun.asked, begun.plan.counts, settings.task,
                    settings.max_loss,
                )  # fmt: skip
                return Ahead(job, store, workers, torch.get_num_threads(), ray)

            if settings.phase == "both":
                advance()
                stores = store, _store(decode_stages, key, console)
                found = both.tune(settings, texts, pretrained, stores, stage, (prefill, clock), ahead)
            elif settings.phase == "decode":
                advance()
                found = decode.Run(settings, texts, pretrained, store, stage, clock).tune()
            else:
                begun = begin(settings, texts, pretrained, store, clock)
                advance()
                with ahead(begun) as others:
                    found = Run(settings, begun, store, stage, clock, others).tune()
        in_words, as_file, as_page = _told(found)
        with shown(lambda: in_words(console), console, report, record):
            write_record(found, record)
            model.unlink(missing_ok=True)  # of a run before, with other settings
            if found.verdict == "faster":
                as_file(pretrained).save(model)
            write_whole(report, as_page())
    if found.verdict == "faster":
        say(console, f"model   {model}")
    return found


def _told(
    found: Tuning | Decoding | Both,
) -> tuple[Callable[[Console], None], Callable[[Pretrained], Tuned], Callable[[], str]]:
    """A run in words, as the file to load, and as a page."""
    if isinstance(found, Both):
        return partial(both.show, found), partial(both.tuned, found), partial(both.page, found)
    if isinstance(found, Decoding):
        return partial(decode_told.show, found), partial(decode_told.tuned, found), partial(decode_told.page, found)
    return partial(show, found), partial(tuned, found), partial(page, found)


@contextmanager
def _tidy(folder: Path) -> Iterator[None]:
    """Whatever is refused leaves no empty folder."""
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def _store(path: Path, key: str, console: Console) -> Store:
    """The store in a file, and what became of an earlier one said."""
    store = Store(path, key)
    if store.told is not None:
        say(console, store.told)
    return store


def _here() -> list[str | None]:
    """What times depend on."""
    facts = machine()
    return [facts["processor"], facts["isa"], os.environ.get("OMP_NUM_THREADS")]
