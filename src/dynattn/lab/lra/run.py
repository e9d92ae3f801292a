"""``dynattn lra``: train the encoder on a task of the arena with dense and with sparse attention, and compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dynattn.lab.lra.experiment import Arena
from dynattn.lab.lra.kept import kept
from dynattn.lab.lra.recipes import find
from dynattn.lab.progress import Stage
from dynattn.lab.records import write_json
from dynattn.lab.training.job import Job
from dynattn.lab.training.named import known
from dynattn.lab.training.results import Study
from dynattn.lab.training.run import refuse_another
from dynattn.lab.training.settings import check
from dynattn.lab.training.study import jobs_of, study

_POINTS = 4  # of a learning curve; each costs an evaluation, which for bytes takes as long as 13 steps
_MOST_UNSAVED = 500  # steps that a kill may cost, where a quarter of the run would be more
_FLOORS = "floors.json"
_KEPT = "kept.json"


@dataclass(frozen=True)
class Settings:
    """What to train.

    Args:
        task: a name of :data:`dynattn.lab.lra.recipes.TASKS`.
        size: ``small`` or ``published``.
        methods: short names, of methods, of pooling, as ``ponet-16``, or of what becomes of the weights, as
            ``sr-ste-2-4``; dense attention with all weights is trained beside them.
        seeds: how many, from 0.
        steps: the number of steps of the optimizer; None, here and below, for the recipe's.
        batch: the number of sequences in a step, over all processes.
        learning_rate: the learning rate at its highest.
        threads: how many threads torch uses; None leaves them.

    Raises:
        ValueError: a name is unknown or a number below 1.
    """

    task: str = "listops"
    size: str = "small"
    methods: tuple[str, ...] = ("nm-1-2", "nm-2-4")
    seeds: int = 3
    steps: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        find(self.task, self.size)
        check("lra", self, ("seeds", "steps", "batch", "threads"), known)


def lra(settings: Settings, output: Path, stage: Stage) -> Study:
    """Train with dense attention and with each method, from scratch and by the same recipe.

    Args:
        settings: what to train.
        output: folder; the runs go into :func:`runs_folder` of it and are not repeated when they are there. Beside
            them are written ``floors.json``, what can be had without attention, and ``kept.json``, the mass that each
            method keeps in the trained models.
        stage: shows progress.

    Returns:
        Accuracies, differences to dense, and curves.

    Raises:
        ValueError: the folder holds other runs.
        dynattn.lab.tasks.DataMissingError: the task's data is not on this machine.
        dynattn.lab.data.packages.PackageUnavailableError: a package that carries it could not be fetched.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    recipe = find(settings.task, settings.size)
    steps = settings.steps or recipe.steps
    job: Callable[[str, int], Job] = partial(
        Job,
        steps=steps,
        batch=settings.batch or recipe.batch,
        learning_rate=settings.learning_rate or recipe.learning_rate,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        evaluate_every=max(1, steps // _POINTS),
        save_every=max(1, min(steps // _POINTS, _MOST_UNSAVED)),
    )
    folder = runs_folder(output, settings.task, settings.size)
    seeds = range(settings.seeds)
    refuse_another(jobs_of(settings.methods, seeds, job).values(), folder)  # before the data
    advance = stage(f"data of {settings.task}", 2)
    data = recipe.data()
    advance()
    arena = Arena(f"{settings.task} {settings.size}", data, recipe)
    advance()
    found = study(arena, settings.methods, seeds, job, folder, stage, keep_models=True)
    looked = [each.model_dump() for each in kept(arena, found.methods, seeds, folder)]
    write_json(folder / _FLOORS, arena.baselines._asdict())
    write_json(folder / _KEPT, looked)
    return found


def runs_folder(output: Path, task: str, size: str) -> Path:
    """Where the runs of a task in a size are kept."""
    return output / f"lra-{task}-{size}"
