"""What ``dynattn compare`` does: reserve the files, compare with progress, write the report, print the table."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dynattn.lab.compare.document import page
from dynattn.lab.compare.run import Settings, compare
from dynattn.lab.compare.terminal import show
from dynattn.lab.records import reserve, write_record, write_whole
from dynattn.lab.reports import files, shown
from dynattn.lab.terminal import quiet_transformers, stages


def run(settings: Settings, output: Path, console: Console) -> None:
    """Compare, write ``compare-<model>.html`` and ``.json``, and print the table, whether they could be written or not.

    Args:
        settings: what to compare.
        output: folder, made if need be.
        console: where to print.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: a name or an option is wrong, data or a package is missing, or
            a file cannot be written.
    """
    report, figures = files("compare", Path(settings.model).name or settings.model, output)
    with reserve(report, figures):
        quiet_transformers()
        with stages(console) as stage:
            found = compare(settings, stage)
        with shown(lambda: show(found, console), console, report, figures):
            write_record(found, figures)
            write_whole(report, page(found))
