"""Puts a method into a model that was trained with dense attention, to see what it costs without training for it.

The zeros of a recipe of training are put in likewise, at one stroke and by magnitude.

For a task that a pretrained model cannot do before it is trained, this is what "without fine-tuning" means: the dense
model is fine-tuned, and the method takes the place of its attention afterwards.
"""

from __future__ import annotations

from pathlib import Path

from dynattn.lab.progress import Stage
from dynattn.lab.records import write_record
from dynattn.lab.training.experiment import Experiment
from dynattn.lab.training.kept import load_kept, read_run
from dynattn.lab.training.named import attention_of
from dynattn.lab.training.processes import processes
from dynattn.lab.training.results import Run


def swapped(method: str, seed: int, experiment: Experiment, home: Path, stage: Stage) -> Run:
    """Judge a method with the weights of a finished run, or read what was found before.

    Args:
        method: a short name.
        seed: the seed of the run.
        experiment: model, data and measure.
        home: the run's folder. It holds the weights, and gets ``swapped-<method>.json``.
        stage: shows progress.

    Returns:
        The scores; there is no curve.

    Raises:
        ValueError: the run's weights were not kept, or a file of the run is damaged.
    """
    from dynattn.lab.training.weights import judged

    state = processes()
    state.wait_for_everyone()  # the main process has written the weights
    path = home / f"swapped-{method}.json"
    advance = stage(f"{home.name}: with {method}", experiment.steps())
    if path.exists():
        return read_run(path, experiment, "delete it, and the method is judged again")
    model = experiment.model(attention_of(method))
    load_kept(model, home)
    model.eval().to(state.device)
    with judged(method, model):
        scores = experiment.evaluate(model, advance)
    found = Run(seed=seed, scores=scores.tolist(), curve=[], losses=[])
    write_record(found, path)
    return found
