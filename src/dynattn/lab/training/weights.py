"""What a training does to weights and activations besides learning: a recipe that thins weights out, a mask that is
there from the start, or a penalty on activations that are not 0.

Recipes and masks are named where methods are: ``sr-ste-2-4``, ``nmweight-2-4``. Attention is dense then, so that the
zeros are all that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dynattn.lab.training.job import Job
from dynattn.lab.training.named import of_weights
from dynattn.sparsity import WeightSparsity
from dynattn.sparsity.training import DensityLoss, Recipe, Training

Notes = dict[str, Callable[[], Any]]
"""What the journal of a run notes of each step, by name."""


def judged(name: str, model: nn.Module) -> AbstractContextManager[Any]:
    """While active, a model that was not trained for it has the zeros that a name stands for.

    Args:
        name: of a recipe, whose one-shot counterpart it is, of a method that chooses weights, or of anything else,
            which changes nothing.
        model: as :meth:`dynattn.lab.training.Experiment.model` gives it.
    """
    found = of_weights(name)
    if found is None:
        return nullcontext()
    return (found.kept if isinstance(found, Recipe) else found).apply(model)


@contextmanager
def thinning(job: Job, trainer: Any, notes: Notes) -> Iterator[None]:
    """While active, a training does what its job says of weights and activations; afterwards the weights that are not
    kept are 0 for good.

    Args:
        job: the numbers.
        trainer: Transformers' Trainer, before it trains.
        notes: gets what is worth noting of each step.
    """
    model, found = trainer.model, of_weights(job.method)
    with ExitStack() as undo:
        if isinstance(found, WeightSparsity):
            found.fix(model)
        if isinstance(found, Recipe):
            training = undo.enter_context(found.train(model, steps=job.steps))
            trainer.add_callback(_Follow(training))
            notes["changed"] = lambda: training.changed[-1]
        if (asked := job.density) is not None:
            _penalise(model, asked, undo, notes)
        yield
    if isinstance(found, Recipe):
        found.kept.fix(model)


def _penalise(model: nn.Module, asked: DensityLoss, undo: ExitStack, notes: Notes) -> None:
    """Add the penalty to the loss that the model gives while it is trained."""
    measured = undo.enter_context(asked.watch(model))

    def penalised(module: nn.Module, args: Any, output: Any) -> Any:
        return {**output, "loss": output["loss"] + measured.loss()} if module.training else output

    undo.callback(model.register_forward_hook(penalised).remove)
    notes["density"] = lambda: measured.density


class _Follow(TrainerCallback):
    """Ties a recipe to the optimizer, which Trainer makes when it begins, at the step where the run goes on."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = kwargs["optimizer"]  # accelerate has put its own around the one that makes the steps
        self.training.attach(getattr(optimizer, "optimizer", optimizer), state.global_step)
