"""``dynattn finetune``: a pretrained model, a task of the suite, and the recipe that suits them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from dynattn.lab.finetune.restore import Restore, only_encoders
from dynattn.lab.models import Kind, Pretrained, facts, load
from dynattn.lab.progress import Stage
from dynattn.lab.records import slug
from dynattn.lab.tasks import Manpages, Perplexity, Retrieval, fitting, make
from dynattn.lab.tasks.texts import Text, read
from dynattn.lab.training.experiment import Experiment
from dynattn.lab.training.job import Job
from dynattn.lab.training.named import known
from dynattn.lab.training.results import Study
from dynattn.lab.training.run import refuse_another
from dynattn.lab.training.settings import check
from dynattn.lab.training.study import jobs_of, study
from dynattn.methods import parse


class FinetuneRecipe(NamedTuple):
    """The default numbers of a training. They were chosen on dense attention; see docs/finetune.md.

    Attributes:
        steps: how many steps the optimizer takes.
        batch: how many examples a step has.
        learning_rate: the highest learning rate.
        items: how many items are held out.
        tokens: how many tokens a text has.
    """

    steps: int
    batch: int
    learning_rate: float
    items: int
    tokens: int


RECIPES: dict[str, FinetuneRecipe] = {
    Restore.task: FinetuneRecipe(steps=64, batch=4, learning_rate=5e-4, items=64, tokens=256),
    Manpages.name: FinetuneRecipe(steps=24, batch=16, learning_rate=1e-5, items=192, tokens=256),
    Retrieval.name: FinetuneRecipe(steps=24, batch=16, learning_rate=1e-5, items=96, tokens=256),
    Perplexity.name: FinetuneRecipe(steps=20, batch=2, learning_rate=3e-5, items=3, tokens=1024),
}
"""The tasks that a model can be trained on, with their default numbers."""

_DEFAULT = {"encoder": Restore.task, "decoder": Perplexity.name}


@dataclass(frozen=True)
class Settings:
    """What to fine-tune.

    Args:
        model: a name that :func:`dynattn.lab.models.load` takes: an encoder or a decoder.
        task: one of :data:`RECIPES`; None for the one that fits the model.
        methods: short names, of methods or of what becomes of the weights, see
            :func:`dynattn.lab.training.named.of_weights`; dense attention with all weights is trained beside them.
        seeds: how many, from 0.
        steps: the number of steps of the optimizer; None, here and below, for the recipe's.
        batch: the number of examples in a step, over all processes.
        learning_rate: the learning rate at its highest.
        items: held out.
        tokens: the number of tokens of a text.
        text: the user's own texts, see :func:`dynattn.lab.tasks.texts.read`.
        density_loss: the weight of the penalty on activations that are not 0; None for none.
        density_epsilon: its ε; None for the published one.
        keep_models: write the trained models too.
        threads: how many threads torch uses; None leaves them.
    """

    model: str = "minilm"
    task: str | None = None
    methods: tuple[str, ...] = ("nm-2-4", "nm-1-2")
    seeds: int = 3
    steps: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    items: int | None = None
    tokens: int | None = None
    text: Path | None = None
    density_loss: float | None = None
    density_epsilon: float | None = None
    keep_models: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        check("finetune", self, ("seeds", "steps", "batch", "items", "tokens", "threads"), partial(known, other=parse))
        if self.task is not None and self.task not in RECIPES:
            raise ValueError(f"finetune: task must be one of {', '.join(RECIPES)}: got {self.task!r}; see --task")


def finetune(settings: Settings, output: Path, stage: Stage) -> Study:
    """Fine-tune a model with dense attention and with each method, by the same recipe.

    Args:
        settings: what to train.
        output: folder; the runs go into ``finetune-<model>-on-<task>`` there and are not repeated when they are there.
        stage: shows progress.

    Returns:
        Scores without training, with dense training and the method swapped in after, and with training; differences to
        dense, and curves.

    Raises:
        ValueError: a name is unknown, a task does not fit the model, or the folder holds other runs.
        dynattn.lab.tasks.DataMissingError: the task's data is not on this machine.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    texts = None if settings.text is None else read(settings.text)  # before the model is loaded, since this may fail
    seeds = range(settings.seeds)
    for task in (settings.task,) if settings.task else _DEFAULT.values():  # for the same reason; one of them is used
        refuse_another(jobs_of(settings.methods, seeds, _job(settings, task)).values(), _folder(settings, output, task))
    kind = facts(settings.model).kind
    task = settings.task or _default(settings, kind)
    _check_task(settings, task, kind)
    advance = stage(f"load {settings.model}", 2)
    pretrained = load(settings.model)
    advance()
    experiment = _experiment(settings, task, RECIPES[task], pretrained, texts)
    advance()
    return study(
        experiment, settings.methods, seeds, _job(settings, task), _folder(settings, output, task), stage,
        settings.keep_models, swap=True,
    )  # fmt: skip


def _job(settings: Settings, task: str) -> Callable[[str, int], Job]:
    recipe = RECIPES[task]
    steps = settings.steps or recipe.steps
    return partial(
        Job,
        steps=steps,
        batch=settings.batch or recipe.batch,
        learning_rate=settings.learning_rate or recipe.learning_rate,
        evaluate_every=max(1, steps // 3),
        save_every=max(1, steps // 6),
        density_loss=settings.density_loss,
        density_epsilon=settings.density_epsilon,
    )


def _folder(settings: Settings, output: Path, task: str) -> Path:
    """The folder of the runs, named like the experiment."""
    return output / f"finetune-{slug(f'{Path(settings.model).name} on {task}')}"


def _default(settings: Settings, kind: Kind) -> str:
    if kind not in _DEFAULT:
        raise ValueError(
            f"finetune: the model must be an encoder or a decoder of text: {settings.model} is {kind}; train it with "
            "dynattn.integrations.transformers directly"
        )
    return _DEFAULT[kind]


def _check_task(settings: Settings, task: str, kind: Kind) -> None:
    """Refuse, before the model is loaded, a task that is not for its kind."""
    if task == Restore.task:
        only_encoders(kind, settings.model)
    else:
        fitting(task, kind, settings.model, settings.text is not None)


def _experiment(
    settings: Settings, name: str, recipe: FinetuneRecipe, pretrained: Pretrained, texts: tuple[Text, ...] | None
) -> Experiment:
    from dynattn.lab.finetune.language import Language
    from dynattn.lab.finetune.pairs import Pairs

    items, tokens = settings.items or recipe.items, settings.tokens or recipe.tokens
    if name == Restore.task:
        return Restore(pretrained, items, tokens, texts)
    task = make(name, pretrained, items=items, tokens=tokens, texts=texts)
    return Language(pretrained, task) if isinstance(task, Perplexity) else Pairs(pretrained, task)  # type: ignore[arg-type]
