"""Trains every method with every seed, by the same recipe, to compare dense with sparse attention after training."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dynattn.lab.figures import BASELINE, Spread
from dynattn.lab.machine import machine
from dynattn.lab.progress import Stage
from dynattn.lab.records import alone, read_json, write_json
from dynattn.lab.training.experiment import Experiment
from dynattn.lab.training.job import Job
from dynattn.lab.training.kept import read_run
from dynattn.lab.training.named import attention_of
from dynattn.lab.training.processes import processes
from dynattn.lab.training.results import Arm, Run, Study
from dynattn.lab.training.run import DivergedError, refuse_another, run, seconds_a_step
from dynattn.lab.training.statistics import contrast
from dynattn.lab.training.swapped import swapped

_VARIES = ("method", "seed")
_REMEDY = "delete it, and the model is judged again"


def study(
    experiment: Experiment,
    methods: Sequence[str],
    seeds: Sequence[int],
    job: Callable[[str, int], Job],
    folder: Path,
    stage: Stage,
    keep_models: bool = False,
    swap: bool = False,
) -> Study:
    """Train every method with every seed, dense attention included. What ``folder`` holds already is not repeated.

    A method whose training diverges is left out, and said to be; the others go on.

    Args:
        experiment: model, data and measure.
        methods: short names; dense attention (``sdpa``) is added.
        seeds: at least one; two or more for an interval that holds for other seeds too.
        job: the numbers of a run by method and seed, for example ``partial(Job, steps=30, ...)``.
        folder: a folder a run, see :func:`dynattn.lab.training.run.run`.
        stage: shows progress.
        keep_models: write the trained models there too.
        swap: judge each method also with the weights that dense attention was trained to, which are kept for it.

    Returns:
        Scores, paired differences with intervals, and curves.

    Raises:
        ValueError: there is no seed, the training of dense attention diverges, or as
            :func:`dynattn.lab.training.run.run`.
    """
    began = time.perf_counter()
    jobs = jobs_of(methods, seeds, job)
    methods = list(dict.fromkeys(method for method, _ in jobs))
    seeds = list(dict.fromkeys(seed for _, seed in jobs))
    refuse_another(jobs.values(), folder, experiment)  # before the first of them is trained for nothing
    after: dict[str, list[Run]] = {method: [] for method in methods}
    between: dict[str, list[Run]] = {method: [] for method in methods[1:]} if swap else {}
    times: dict[str, list[float]] = {method: [] for method in methods}
    diverged: dict[str, str] = {}
    with alone(folder) if processes().is_main_process else nullcontext():
        before = {
            method: [_untrained(experiment, method, folder, stage)] for method in methods if experiment.pretrained
        }
        for (method, seed), each in jobs.items():
            if method in diverged:
                continue
            try:
                after[method].append(run(each, experiment, folder, stage, keep_models, swap and method == BASELINE))
            except DivergedError as error:
                if method == BASELINE:  # nothing is left to compare with
                    raise
                diverged[method] = str(error)
                continue
            times[method] += seconds_a_step(each, folder)
            if method in between:
                dense = folder / jobs[BASELINE, seed].name
                between[method].append(swapped(method, seed, experiment, dense, stage))
    for method in diverged:
        for arms in (before, between, after):
            arms.pop(method, None)
    numbers = dataclasses.asdict(next(iter(jobs.values())))
    return Study(
        name=experiment.name,
        summary=experiment.summary,
        metric=experiment.metric,
        higher_is_better=experiment.higher_is_better,
        items=list(experiment.labels),
        identity=experiment.identity(),
        job={key: value for key, value in numbers.items() if key not in _VARIES and value is not None},
        methods=[method for method in methods if method not in diverged],
        diverged=diverged,
        seeds=seeds,
        processes=processes().num_processes,
        machine=machine() | {name: version(name) for name in ("transformers", "accelerate")},
        arms=[*_untrained_arms(before), *_swapped_arms(between, after), *_trained_arms(after, before, between, times)],
        seconds=time.perf_counter() - began,
        chance=experiment.chance,
    )


def jobs_of(methods: Sequence[str], seeds: Sequence[int], job: Callable[[str, int], Job]) -> dict[tuple[str, int], Job]:
    """The jobs of a study by method and seed, dense attention's first.

    Raises:
        ValueError: there is no seed.
    """
    if not seeds:
        raise ValueError("study: there must be a seed: got none; 3 are usual")
    # Seeds outside, so that a study that was stopped half-way has all methods.
    every = dict.fromkeys([BASELINE, *methods])
    return {(method, seed): job(method, seed) for seed in dict.fromkeys(seeds) for method in every}


def _untrained(experiment: Experiment, method: str, folder: Path, stage: Stage) -> Run:
    """The model as it came, under a method."""
    from dynattn.lab.training.weights import judged

    wanted = json.loads(json.dumps(experiment.identity()))
    path = folder / f"{method}-untrained.json"
    advance = stage(f"{method}: without training", experiment.steps())
    if path.exists():
        there = read_json(path, _REMEDY)
        if isinstance(there, dict) and there.get("experiment") == wanted:  # else it is written anew; a trained one not
            return read_run(path, experiment, _REMEDY, inside="run")
    model = experiment.model(attention_of(method)).eval().to(processes().device)
    with judged(method, model):
        scores = experiment.evaluate(model, advance)
    found = Run(seed=None, scores=scores.tolist(), curve=[], losses=[])
    write_json(path, {"experiment": wanted, "run": found.model_dump()})
    return found


def _untrained_arms(before: Mapping[str, list[Run]]) -> list[Arm]:
    return [
        _arm(method, runs, None if method == BASELINE else before[BASELINE], trained=False)
        for method, runs in before.items()
    ]


def _swapped_arms(between: Mapping[str, list[Run]], after: Mapping[str, list[Run]]) -> list[Arm]:
    return [_arm(method, runs, after[BASELINE], trained=True, swapped=True) for method, runs in between.items()]


def _trained_arms(
    after: Mapping[str, list[Run]],
    before: Mapping[str, list[Run]],
    between: Mapping[str, list[Run]],
    times: Mapping[str, list[float]],
) -> list[Arm]:
    arms = []
    for method, runs in after.items():
        spent = times[method]
        arm = _arm(method, runs, None if method == BASELINE else after[BASELINE], trained=True)
        found = {
            "gain": contrast(_table(runs) - _table(before[method])) if before else None,
            "recovered": contrast(_table(runs) - _table(between[method])) if method in between else None,
            "seconds": _spread(spent) if spent else None,
        }
        arms.append(arm.model_copy(update=found))
    return arms


def _arm(method: str, runs: list[Run], dense: list[Run] | None, trained: bool, swapped: bool = False) -> Arm:
    """What all arms have; ``dense`` is what its runs are compared with."""
    table = _table(runs)
    return Arm(
        method=method,
        trained=trained,
        score=contrast(table),
        difference=None if dense is None else contrast(table - _table(dense)),
        gain=None,
        seconds=None,
        runs=runs,
        swapped=swapped,
    )


def _table(runs: list[Run]) -> np.ndarray:
    """(seeds, items); one row without training."""
    return np.array([each.scores for each in runs])


def _spread(values: Sequence[float]) -> Spread:
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return Spread(median=float(median), q1=float(q1), q3=float(q3))
