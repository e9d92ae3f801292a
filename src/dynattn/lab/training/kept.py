"""The files that a finished run leaves in its folder: scores, and weights to judge other methods with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dynattn.lab.records import as_record, read_json
from dynattn.lab.training.experiment import Experiment
from dynattn.lab.training.results import Run

WEIGHTS = "weights.pt"
AGAIN = "delete the folder, and it is trained again"
"""The remedy where a run's folder is damaged."""


def read_run(path: Path, experiment: Experiment, remedy: str, inside: str | None = None) -> Run:
    """Read the result of a run.

    Args:
        path: the path of the file.
        experiment: that it is of.
        remedy: what a person can do where the file is damaged.
        inside: the key that it stands under; None where it is the whole.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    value = read_json(path, remedy)
    found = as_record(Run, value if inside is None else value.get(inside), path, remedy)
    if len(found.scores) != len(experiment.labels) or not np.isfinite(found.scores).all():
        raise ValueError(
            f"read: {path} must hold a finite score for each of {len(experiment.labels)} items: it holds "
            f"{len(found.scores)}, {int(np.isfinite(found.scores).sum())} of them finite; {remedy}"
        )
    return found


def keep(model: nn.Module, home: Path) -> None:
    """Write a trained model's weights into its run's folder, whole or not at all."""
    work = home / f".{WEIGHTS}-{os.getpid()}"
    try:
        torch.save(model.state_dict(), work)
        work.replace(home / WEIGHTS)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError
        raise OSError(
            f"write: {home / WEIGHTS} must be a file that can be written: {error}; free the disk, or give another "
            "--output"
        ) from error
    finally:
        work.unlink(missing_ok=True)


def load_kept(model: nn.Module, home: Path) -> None:
    """Put the weights of a run into a model.

    Raises:
        ValueError: the run's weights were not kept, or are damaged or of another model.
    """
    path = home / WEIGHTS
    if not path.exists():
        raise ValueError(
            f"swapped: a run that is to be judged with another method must have its weights: {home} has no {WEIGHTS}; "
            f"{AGAIN}"
        )
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file makes torch raise nearly anything
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"swapped: {path} must hold the run's weights: {said}; {AGAIN}") from error
