"""One training under Hugging Face Trainer, that a kill cannot spoil.

The launcher decides on how many processes and machines it runs: ``torchrun`` or ``accelerate launch``. Every process
calls :func:`run`; the main one writes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynattn.lab.progress import Stage
from dynattn.lab.records import read_json, read_record, write_json, write_record
from dynattn.lab.training import checkpoints
from dynattn.lab.training.experiment import Experiment
from dynattn.lab.training.job import Job
from dynattn.lab.training.kept import AGAIN, keep, read_run
from dynattn.lab.training.named import attention_of
from dynattn.lab.training.processes import processes
from dynattn.lab.training.results import Point, Run

_JOB = "job.json"
_RESULT = "result.json"
_ASKED = ("steps", "batch", "learning_rate")  # what a person gives, and other numbers follow from
_KEPT_CHECKPOINTS = 2  # the newest may be half-written


class DivergedError(ValueError):
    """A training gave losses or scores that are not finite; its folder is left free for other numbers."""


def run(
    job: Job,
    experiment: Experiment,
    folder: Path,
    stage: Stage,
    keep_model: bool = False,
    keep_weights: bool = False,
) -> Run:
    """Train, or go on where a killed run stopped, or read the result of a finished one.

    Args:
        job: the numbers.
        experiment: model, data and measure.
        folder: the run gets a folder of its own in it, ``<method>-seed<seed>``: ``job.json`` (what it is),
            ``metrics.jsonl`` (a line a step, as it goes), ``checkpoint-*`` (until it ends) and ``result.json`` (last,
            whole or not at all).
        stage: shows progress.
        keep_model: write the trained model into ``model`` there, for its user.
        keep_weights: write its weights there, for :func:`dynattn.lab.training.swapped.swapped`.

    Returns:
        The scores of the trained model and its curves. On a CPU a resumed run gives bit by bit what an undisturbed one
        gives with as many threads.

    Raises:
        ValueError: the folder holds another job of this name, one of other processes, or a finished one whose model was
            not kept; or the data does not fill a batch.
        DivergedError: losses or scores are not finite.
        ImportError: transformers or accelerate is missing.
    """
    home = folder / job.name
    wanted = _as_json({"job": dataclasses.asdict(job), "experiment": experiment.identity()})
    wanted["processes"] = processes().num_processes
    there = _read_job(home / _JOB) if (home / _JOB).exists() else wanted
    _refuse_another(home, there, wanted)
    if (home / _RESULT).exists():
        return _finished(home, experiment, keep_model)
    _refuse_other_processes(home, there.get("processes"), wanted["processes"])
    notes: dict[str, Any] = {}
    trainer, start = _trainer(job, experiment, home, stage, notes)
    if trainer.is_world_process_zero():  # not before: a job that cannot start leaves the folder to other numbers
        write_json(home / _JOB, wanted)
    _learn(job, trainer, start, notes)
    model = trainer.model.eval()
    scores = experiment.evaluate(model, stage(f"{job.name}: evaluate", experiment.steps()))
    _refuse_diverged(job, scores, trainer, home)
    found = _result(job.seed, scores.tolist(), trainer.state.log_history, job.steps)
    if trainer.is_world_process_zero():
        if keep_model:
            experiment.save(model, home / "model")
        if keep_weights:
            keep(model, home)
        write_record(found, home / _RESULT)
        checkpoints.discard(home)
    return found


def refuse_another(jobs: Iterable[Job], folder: Path, experiment: Experiment | None = None) -> None:
    """See that no run in a folder is of another job or damaged, before anything is loaded or trained for it.

    Args:
        jobs: that are to be run there.
        folder: as :func:`run` takes it.
        experiment: that they are of; None while it is not loaded yet, and the numbers alone are compared.

    Raises:
        ValueError: a run of the same name is of another job, or a file of it cannot be read.
    """
    for job in jobs:
        home = folder / job.name
        if (home / _JOB).exists():
            there = _read_job(home / _JOB)
            _refuse_another(home, there, {
                "job": dataclasses.asdict(job),
                "experiment": there["experiment"] if experiment is None else _as_json(experiment.identity()),
            })  # fmt: skip
        if (home / _RESULT).exists():
            read_record(Run, home / _RESULT, AGAIN)


def _read_job(path: Path) -> dict[str, Any]:
    found = read_json(path, AGAIN)
    if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in ("job", "experiment")):
        raise ValueError(f"read: {path} must hold a job and its experiment: it holds something else; {AGAIN}")
    return found


def _as_json(value: Any) -> Any:
    """As it comes back from a file: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value))


def _learn(job: Job, trainer: Any, start: Path | None, notes: dict[str, Any]) -> None:
    """Train, with what the job says of weights and activations."""
    from dynattn.lab.training.weights import thinning

    with thinning(job, trainer, notes):
        _train(trainer, start)


def _train(trainer: Any, start: Path | None) -> None:
    """Train on from a checkpoint, if there is one that can be read."""
    try:
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    except Exception as error:  # a damaged checkpoint makes Trainer raise nearly anything
        if start is None or trainer.state.global_step > checkpoints.step(start):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"run: a checkpoint must be readable: {start} is not ({said}); delete it, and training goes on from the "
            "one before or from the start"
        ) from error


def _refuse_diverged(job: Job, scores: np.ndarray, trainer: Any, home: Path) -> None:
    """Refuse a model whose scores or losses are not finite, and leave the folder free for other numbers."""
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    lost = next(((step, loss) for step, loss in losses if not math.isfinite(loss)), None)
    if lost is None and np.isfinite(scores).all():
        return
    if trainer.is_world_process_zero():
        checkpoints.discard(home)
        (home / _JOB).unlink(missing_ok=True)
    what = f"a loss of {lost[1]} at step {lost[0]}" if lost else f"a score of {scores[~np.isfinite(scores)][0]}"
    raise DivergedError(
        f"run: losses and scores must be finite: {job.name} gave {what}: the training diverged with a learning rate of "
        f"{job.learning_rate:g}; use a smaller --learning-rate"
    )


def _finished(home: Path, experiment: Experiment, keep_model: bool) -> Run:
    if keep_model and not (home / "model").exists():
        raise ValueError(
            f"run: a finished run has its model where it was to be kept: {home} has none; delete the folder, and it is "
            "trained again"
        )
    return read_run(home / _RESULT, experiment, AGAIN)


def seconds_a_step(job: Job, folder: Path) -> list[float]:
    """How long each step of a run took, the first of it or after it was resumed included; evaluation is not."""
    from dynattn.lab.training.callbacks import read_journal

    return [line["seconds"] for line in read_journal(folder / job.name / "metrics.jsonl")]


def _refuse_another(home: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """See that what the folder holds is this job."""
    for part in ("job", "experiment"):
        for key in sorted({*wanted[part], *there[part]}, key=lambda key: (key not in _ASKED, key)):
            new, old = wanted[part].get(key), there[part].get(key)
            if new != old:
                raise ValueError(
                    f"run: a folder holds one job: {home} has {key} {old!r}, now it is {new!r}; give another --output, "
                    "or delete the folder"
                )


def _refuse_other_processes(home: Path, old: int | None, new: int) -> None:
    """A step is shared otherwise by more processes, and each has random numbers of its own in a checkpoint."""
    if old is not None and old != new and checkpoints.last_complete(home) is not None:
        raise ValueError(
            f"run: a run is resumed by as many processes as it was started with: {home} was started with {old}, now "
            f"there are {new}; start {old}, or delete the folder"
        )


def _trainer(
    job: Job, experiment: Experiment, home: Path, stage: Stage, notes: Mapping[str, Callable[[], Any]]
) -> tuple[Any, Path | None]:
    """A Trainer that is ready to go, and the checkpoint to go on from."""
    from transformers import Trainer, set_seed
    from transformers.trainer_callback import PrinterCallback

    from dynattn.lab.training.callbacks import Evaluate, Journal, Seal

    state = processes()
    start = checkpoints.last_complete(home)
    state.wait_for_everyone()  # nobody deletes before everyone has chosen
    if state.is_main_process:
        checkpoints.discard_incomplete(home)
    done = 0 if start is None else checkpoints.step(start)
    advance = stage(f"{job.name}: train", job.steps)
    for _ in range(done):
        advance()
    set_seed(job.seed)
    model: nn.Module = experiment.model(attention_of(job.method))
    trainer = Trainer(
        model=model,
        args=_arguments(job, home, state.num_processes),
        train_dataset=_filled(experiment, job),
        data_collator=experiment.collate,
        callbacks=[
            Evaluate(experiment, job.evaluate_every),
            Seal(home, state.wait_for_everyone),
            Journal(home / "metrics.jsonl", done, advance, notes),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, start


def _arguments(job: Job, home: Path, processes: int) -> Any:
    from transformers import TrainingArguments

    if job.batch % processes:
        raise ValueError(
            f"run: batch must divide among the processes: got batch {job.batch}, {processes} processes; "
            "change --batch or the number of processes"
        )
    arguments = TrainingArguments(
        output_dir=str(home),
        max_steps=job.steps,
        per_device_train_batch_size=job.batch // processes,
        learning_rate=job.learning_rate,
        weight_decay=job.weight_decay,
        warmup_steps=job.warmup,  # below 1 it is a share
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=job.seed,
        data_seed=job.seed,
        save_strategy="steps",
        save_steps=job.save_every,
        save_total_limit=_KEPT_CHECKPOINTS,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    if arguments.n_gpu > 1:
        raise ValueError(
            f"run: a process takes one GPU: this one sees {arguments.n_gpu}; start it by torchrun "
            f"--nproc-per-node {arguments.n_gpu}, or set CUDA_VISIBLE_DEVICES=0"
        )
    return arguments


def _filled(experiment: Experiment, job: Job) -> Any:
    data: Any = experiment.dataset()
    if len(data) < job.batch:
        raise ValueError(
            f"run: the training data must fill a batch of {job.batch}: {experiment.name} has {len(data)} examples; "
            "use a smaller --batch, or let the data give more of them"
        )
    return data


def _result(seed: int, scores: list[float], history: list[dict[str, Any]], steps: int) -> Run:
    from dynattn.lab.training.callbacks import SCORE

    curve = [Point(step=entry["step"], value=entry[SCORE]) for entry in history if SCORE in entry]
    losses = [Point(step=entry["step"], value=entry["loss"]) for entry in history if "loss" in entry]
    end = Point(step=steps, value=sum(scores) / len(scores))
    return Run(seed=seed, scores=scores, curve=[*curve, end], losses=losses)
