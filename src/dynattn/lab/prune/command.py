"""What ``dynattn prune`` does: search with progress, write what is left, print what was found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console

from dynattn.lab.prune.results import Pruning
from dynattn.lab.prune.run import prune
from dynattn.lab.prune.settings import Settings
from dynattn.lab.records import alone, slug
from dynattn.lab.terminal import Grid, print_grid, quiet_transformers, say, stages
from dynattn.lab.words import percent
from dynattn.pruning import Element
from dynattn.pruning.structure.removed import SETTING

_WORDS = {
    "attention": "attention blocks", "mlp": "MLP blocks", "heads": "groups of heads", "neurons": "groups of neurons",
}  # fmt: skip


def run(settings: Settings, output: Path, console: Console) -> None:
    """Search, and write ``prune-<model>.json`` and the folder ``prune-<model>``; go on with the record that is there.

    Args:
        settings: what to remove, and by what to judge.
        output: folder, made if need be.
        console: where to print.

    Raises:
        ValueError, OSError, ImportError, RuntimeError: a name or an option is wrong, data or a package is missing, or a
            file cannot be written.
    """
    stem = f"prune-{slug(Path(settings.model).name or settings.model)}"
    record, folder = output / f"{stem}.json", output / stem
    with alone(record):
        quiet_transformers()
        with stages(console) as stage:
            found = prune(settings, record, folder, stage)
    show(found, console)
    say(console, f"\nfigures {record}\n{found.written or 'nothing'} {_where(found, folder)}")


def show(found: Pruning, console: Console) -> None:
    """Print what was tried, what is out, and what the held-out items say."""
    rows = []
    tried = Counter(_kind(trial.name) for trial in found.trials)
    out = Counter(_kind(trial.name) for trial in found.trials if trial.accepted)
    for kind, count in tried.items():
        rows.append([kind, str(count), str(out[kind])])
    print_grid(console, Grid(f"{found.asked.model} without parts", ["what", "tried", "out"], rows))
    for line in sentences(found):
        say(console, line)


def sentences(found: Pruning) -> list[str]:
    """What follows from a search, in words."""
    lines = []
    if found.held_out is not None:
        items = len(found.whole) - found.validation
        lines.append(f"retained on {items} held-out items: {percent(found.held_out)} of {found.metric}")
    if found.parameters is not None:
        before, after = found.parameters
        lines.append(f"parameters: {after / 1e6:.1f}M of {before / 1e6:.1f}M ({after / before:.0%})")
    if found.attention is not None:
        lines.append(f"attention of what is left, by its layers: {found.attention}")
    return lines


def _kind(name: str) -> str:
    return "layers with top-k" if "=" in name else _WORDS[Element.from_name(name).kind]


def _where(found: Pruning, folder: Path) -> str:
    return str(folder / SETTING if found.written == "setting" else folder)
