"""A method put into a model that was trained with dense attention: what it costs where nobody trains for it.

For a task that a pretrained model cannot do before it is trained, this is what "without fine-tuning" means: the dense
model is fine-tuned, and the method takes the place of its attention afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from dynattn.lab.progress import Stage
from dynattn.lab.training import checkpoints
from dynattn.lab.training.experiment import Experiment
from dynattn.lab.training.processes import processes
from dynattn.lab.training.results import Run

_WEIGHTS = "weights.pt"


def keep(model: nn.Module, home: Path) -> None:
    """Write a trained model's weights into its run's folder, whole or not at all."""
    work = home / f".{_WEIGHTS}-{os.getpid()}"
    torch.save(model.state_dict(), work)
    work.replace(home / _WEIGHTS)


def swapped(method: str, seed: int, experiment: Experiment, home: Path, stage: Stage) -> Run:
    """Judge a method with the weights of a finished run, or read what was found before.

    Args:
        method: a short name.
        seed: of the run.
        experiment: model, data and measure.
        home: the run's folder. It holds the weights, and gets ``swapped-<method>.json``.
        stage: shows progress.

    Returns:
        The scores; there is no curve.

    Raises:
        ValueError: the run's weights were not kept.
    """
    state = processes()
    state.wait_for_everyone()  # the main process has written the weights
    path, weights = home / f"swapped-{method}.json", home / _WEIGHTS
    advance = stage(f"{home.name}: with {method}", experiment.steps())
    if path.exists():
        return Run.model_validate_json(path.read_text(encoding="utf-8"))
    if not weights.exists():
        raise ValueError(
            f"swapped: a run that is to be judged with another method must have its weights: {home} has no {_WEIGHTS}; "
            "delete the folder, and it is trained again"
        )
    model = experiment.model(method)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    scores = experiment.evaluate(model.eval().to(state.device), advance)
    found = Run(seed=seed, scores=scores.tolist(), curve=[], losses=[])
    checkpoints.write_json(path, found.model_dump())
    return found
