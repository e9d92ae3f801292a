"""A study in a terminal: progress while it trains, then a table and where the report is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dynattn.lab.data.packages import PackageUnavailableError
from dynattn.lab.figures import BASELINE
from dynattn.lab.finetune.document import how_sure, page, sentences, swapped_in, trained
from dynattn.lab.progress import Stage
from dynattn.lab.records import slug
from dynattn.lab.tasks import DataMissingError
from dynattn.lab.training.processes import processes
from dynattn.lab.training.results import Arm, Contrast, Study
from dynattn.lab.words import interval, label, reading

_BARS = 8  # shown at a time; a study has dozens, more than a terminal has lines
_WIDTH = 9  # of a signed number with four digits and a bracket
_STYLES = {"worse": "red", "better": "green"}


def summary(found: Study) -> Table:
    """One row a method: scores and differences to dense in each state, what training gained, time of a step.

    The gain is over the untrained model; where there is none, over dense weights with the method swapped in.
    """
    before, between = found.of(BASELINE, trained=False) is not None, swapped_in(found)
    table = Table(title=f"{found.name}: {found.metric}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("method")
    names = ["without\ntraining"] * before + ["swapped\nin"] * between + [trained(found).replace("-", "-\n")]
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("less dense\n[95%]", justify="right", min_width=_WIDTH)
    if before or between:
        table.add_column("gain\n[95%]", justify="right", min_width=_WIDTH)
    table.add_column("s a\nstep", justify="right")
    for method in found.methods:
        after = found.of(method, trained=True)
        cells = _cells(found, found.of(method, trained=False)) if before else []
        cells += _cells(found, found.of(method, trained=True, swapped=True)) if between else []
        cells += _cells(found, after)
        if after and (before or between):
            cells.append(_colored(found, after.gain or after.recovered))
        seconds = f"{after.seconds.median:.2f}" if after and after.seconds else "–"
        table.add_row(label(method), *cells, seconds)
    return table


def present(work: Callable[[Stage], Study], output: Path, prefix: str, console: Console | None = None) -> None:
    """Do a study with its progress shown, print it, and write ``<prefix>-<name>.html`` and ``.json``.

    Of several processes, the main one does this; the others only take their part of the work.

    Args:
        work: the study; gets what shows its stages.
        output: folder, made if need be.
        prefix: of the files' names: the command's.
        console: where to print.

    Raises:
        typer.Exit: with code 2, after printing the reason, where a name or an option is wrong, or data or a package
            is missing.
    """
    console = console or Console()
    try:
        main = processes().is_main_process
        with stages(console if main else Console(quiet=True)) as stage:
            found = work(stage)
    except (ValueError, OSError, ImportError, DataMissingError, PackageUnavailableError) as error:
        console.print(f"[bold red]error[/]: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if not main:
        return
    output.mkdir(parents=True, exist_ok=True)
    stem = f"{prefix}-{slug(found.name)}"
    (output / f"{stem}.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")
    (output / f"{stem}.html").write_text(page(found), encoding="utf-8")
    console.print(summary(found))
    for line in (found.summary, how_sure(found)):
        console.print(line, style="dim", highlight=False)
    for line in sentences(found):
        console.print(line, highlight=False)
    console.print(f"\nreport  {output / f'{stem}.html'}\nfigures {output / f'{stem}.json'}", highlight=False)


def _cells(found: Study, arm: Arm | None) -> list[str | Text]:
    if arm is None:
        return ["–", "–"]
    return [f"{arm.score.mean:.4f}", _colored(found, arm.difference)]


def _colored(found: Study, contrast: Contrast | None) -> Text:
    """A mean over its interval."""
    mean, _, bounds = interval(contrast).partition(" ")
    style = _STYLES.get(reading(contrast, found.higher_is_better), "")
    return Text(f"{mean}\n{bounds}".strip(), style)


@contextmanager
def stages(console: Console) -> Iterator[Stage]:
    """Show the stages of some work as bars, the last few of them."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # Transformers' own bars would break ours
    columns: tuple[Any, ...] = (
        TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:

        def stage(title: str, steps: int) -> Callable[[], None]:
            for old in progress.tasks[:-_BARS]:
                progress.update(old.id, visible=False)
            bar = progress.add_task(title, total=steps)
            return lambda: progress.advance(bar)

        yield stage
