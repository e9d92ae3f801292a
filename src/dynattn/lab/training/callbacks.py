"""Callbacks for Transformers' Trainer: evaluation, progress, a journal, and sealed checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dynattn.lab.training import checkpoints
from dynattn.lab.training.experiment import Experiment

SCORE = "score"
"""Key of the mean score in Trainer's log history, from which the learning curve is read."""


class Evaluate(TrainerCallback):
    """Puts the mean score on the held-out items into Trainer's log history, which checkpoints carry.

    Args:
        experiment: scores the model.
        every: steps; the end is left to whoever started the training.
    """

    def __init__(self, experiment: Experiment, every: int) -> None:
        self.experiment, self.every = experiment, every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if state.global_step % self.every or state.global_step >= state.max_steps:
            return
        model.eval()
        score = float(self.experiment.evaluate(model, lambda: None).mean())
        model.train()
        state.log_history.append({"step": state.global_step, SCORE: score})


class Seal(TrainerCallback):
    """Marks a checkpoint as complete when every process has written its part.

    None is written after the last step: there Trainer could not resume without training on, and the result follows.
    """

    def __init__(self, folder: Path, wait: Callable[[], None]) -> None:
        self.folder, self.wait = folder, wait

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.wait()
        if state.is_world_process_zero:
            checkpoints.seal(self.folder / f"checkpoint-{state.global_step}")


class Journal(TrainerCallback):
    """Appends a line of JSON for every step, and tells the progress.

    Args:
        path: the file. Lines of steps after ``start`` are of a run that was killed and are cut off: they come again.
        start: the step that training goes on from.
        advance: called after each step.
        notes: what else a line holds, by name; called when it is written.
    """

    def __init__(
        self, path: Path, start: int, advance: Callable[[], None], notes: Mapping[str, Callable[[], Any]]
    ) -> None:
        self.path, self.start, self.advance, self.notes = path, start, advance, notes
        self.began = self.seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            kept = [line for line in read_journal(self.path) if line["step"] <= self.start]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began = time.perf_counter()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.seconds = time.perf_counter() - self.began

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        line = {"step": state.global_step, **logs, "seconds": self.seconds}
        line |= {name: note() for name, note in self.notes.items()}
        for entry in state.log_history:
            if entry["step"] == state.global_step and SCORE in entry:
                line[SCORE] = entry[SCORE]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict) or not {"step", "seconds"} <= entry.keys():
            break
        found.append(entry)
    return found
