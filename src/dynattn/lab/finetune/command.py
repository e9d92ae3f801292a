"""The work of commands that train: they reserve the files, train with progress, write the report, and print the
table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from dynattn.lab.finetune.document import page
from dynattn.lab.finetune.finetune import Settings, finetune
from dynattn.lab.finetune.terminal import show
from dynattn.lab.progress import Stage
from dynattn.lab.records import reserve, write_record, write_whole
from dynattn.lab.reports import files, shown
from dynattn.lab.terminal import console as new_console
from dynattn.lab.terminal import quiet_transformers, stages
from dynattn.lab.training.processes import processes
from dynattn.lab.training.results import Study


def run(settings: Settings, output: Path, console: Console) -> bool:
    """``dynattn finetune``: see :func:`present`, whose result it gives.

    Args:
        settings: what to train.
        output: folder, made if need be.
        console: where to print.
    """
    return present(lambda stage: finetune(settings, output, stage), output, "finetune", console)


def present(work: Callable[[Stage], Study], output: Path, prefix: str, console: Console) -> bool:
    """Run a study and show its progress, write ``<prefix>-<name>.html`` and ``.json``, and print the result.

    The table is printed whether the files could be written or not. Of several processes, the main one does this; the
    others only take their part of the work.

    Args:
        work: the study; gets what shows its stages.
        output: folder, made if need be.
        prefix: the prefix of the files' names: the command's.
        console: where to print.

    Returns:
        False where the training of a method diverged.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: a name or an option is wrong, data or a package is missing, or
            a file cannot be written.
    """
    main = processes().is_main_process
    quiet_transformers()
    # The names of the files come from the model and the task, which are loaded later, so only the folder is tried here.
    with reserve(output / f"{prefix}.html") if main else nullcontext():
        with stages(console if main else new_console(quiet=True)) as stage:
            found = work(stage)
        if not main:
            return not found.diverged
        report, figures = files(prefix, found.name, output)
        with shown(lambda: show(found, console), console, report, figures):
            write_record(found, figures)
            write_whole(report, page(found))
    return not found.diverged
