"""What ``dynattn lra`` does: a study, as ``dynattn finetune`` does one."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dynattn.lab.finetune.command import present
from dynattn.lab.lra.run import Settings, lra


def run(settings: Settings, output: Path, console: Console) -> bool:
    """Train, write ``lra-<task>-<size>.html`` and ``.json``, and print the table.

    Args:
        settings: what to train.
        output: folder, made if need be.
        console: where to print.

    Returns:
        False where the training of a method diverged.

    Raises:
        As :func:`dynattn.lab.finetune.command.present`.
    """
    return present(lambda stage: lra(settings, output, stage), output, "lra", console)
