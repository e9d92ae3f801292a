"""DynamicViT on DINOv2-small: quality, arithmetic and time of the dense model and with tokens dropped.

python benchmarks/dynamicvit.py FOLDER             # of train_dynamicvit.py: quality, then time; about ten minutes
python benchmarks/dynamicvit.py FOLDER quality     # needs no idle machine
python benchmarks/dynamicvit.py FOLDER time        # does

Writes benchmarks/results/pruning/dynamicvit.json after every arm: a run that was killed goes on where it stopped.

An arm is who chooses the tokens (trained predictors, untrained ones, or chance), the keep ratio of a stage, and the
attention of the layers. Everything is measured with tokens really gathered; floating point operations are counted by
PyTorch's own counter in a real forward, predictors included.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_dynamicvit import JOB, PIXELS, RATIOS, predictors

from dynattn.bench.machine import machine
from dynattn.bench.timing import interleaved
from dynattn.evals.compare.results import Quality, Record, Speed, Spread
from dynattn.evals.compare.run import evaluate
from dynattn.evals.compare.statistics import quality
from dynattn.evals.models import Pretrained, load
from dynattn.evals.tasks import Features, Outcome, Prepared, Saliency, Task
from dynattn.evals.tasks.base import Inputs
from dynattn.evals.training.checkpoints import write_json
from dynattn.evals.training.results import Run
from dynattn.integrations.transformers import register
from dynattn.pruning.dynamicvit import DynamicViT
from dynattn.pruning.predictor import Predictors

RESULT = Path(__file__).parent / "results" / "pruning" / "dynamicvit.json"
ATTENTION = {"sdpa": "sdpa", "nm-1-2": "dynattn:nm-1-2"}
CHOOSERS = ("trained", "untrained", "random")
TASKS: tuple[Task, ...] = (Saliency(items=8), Features(items=8))
SHAPES = ((518, 1), (224, 8))  # pixels and pictures at once
SECONDS = 60.0


class Arm(NamedTuple):
    """Who chooses, how much a stage leaves, and the layers' attention; the dense model has neither of the first."""

    chooser: str
    ratio: float
    attention: str

    @property
    def name(self) -> str:
        """Of its rows."""
        return f"{self.chooser} {self.ratio:g} {self.attention}"


ARMS = (
    *(Arm("dense", 1.0, attention) for attention in ATTENTION),
    *(Arm(*parts) for parts in itertools.product(CHOOSERS, RATIOS, ATTENTION)),
)


class Found(Record):
    """What came of one arm.

    Attributes:
        arm: its name.
        tasks: by name of the task: scores, and differences to the dense model with ``sdpa``.
        class_token: cosine of the class token to the dense model's, one an item of the features task.
    """

    arm: str
    tasks: dict[str, Quality]
    class_token: list[float]


class Work(Record):
    """Arithmetic of a forward of one picture with ``sdpa``.

    Attributes:
        pixels: of the picture.
        ratio: kept by a stage; 1 for the dense model without predictors.
        tokens: that each layer saw.
        flops: counted in the forward.
    """

    pixels: int
    ratio: float
    tokens: list[int]
    flops: int


class Times(Record):
    """Forwards of one shape, interleaved; a row's ``method`` is its arm."""

    pixels: int
    batch: int
    machine: dict[str, Any]
    rows: list[Speed]


class DynamicViTRecord(Record):
    """Everything; ``losses`` are the training's by ratio, a value a step."""

    schema_version: Literal[1] = 1
    model: str
    machine: dict[str, Any]
    training: dict[str, Any]
    losses: dict[str, list[float]]
    held_out: dict[str, list[tuple[int, float]]]
    data: dict[str, str]
    arms: list[Found]
    work: list[Work]
    times: list[Times]


class Chance(Predictors):
    """Predictors that guess."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__(width, keep_ratio=ratio)
        self.generator = torch.Generator().manual_seed(0)

    def log_probabilities(self, stage: int, hidden: Tensor, kept: Tensor) -> Tensor:
        return torch.rand(*hidden.shape[:2], 2, generator=self.generator).log()


def context(arm: Arm, folder: Path, model: Any) -> AbstractContextManager[Any]:
    """What the model runs in; its attention is set apart from that."""
    if arm.chooser == "dense":
        return nullcontext()
    torch.manual_seed(0)
    width = model.config.hidden_size
    made = {
        "trained": lambda: Predictors.load(predictors(folder, arm.ratio)),
        "untrained": lambda: Predictors(width, keep_ratio=arm.ratio).eval(),
        "random": lambda: Chance(width, arm.ratio),
    }[arm.chooser]()
    return DynamicViT(made).apply(model)


def save(found: DynamicViTRecord) -> None:
    """Write the record; a kill leaves the one before or this one, whole."""
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULT, found.model_dump())


def begin(folder: Path, pretrained: Pretrained) -> DynamicViTRecord:
    """The record there is, or a new one with what the trainings left."""
    if RESULT.exists():
        return DynamicViTRecord.model_validate_json(RESULT.read_text(encoding="utf-8"))
    paths = {f"{ratio:g}": predictors(folder, ratio).parent / "result.json" for ratio in RATIOS}
    runs = {ratio: Run.model_validate_json(path.read_text(encoding="utf-8")) for ratio, path in paths.items()}
    return DynamicViTRecord(
        model=pretrained.description,
        machine=machine(),
        training={"pixels": PIXELS, "steps": JOB.steps, "batch": JOB.batch, "learning_rate": JOB.learning_rate},
        losses={ratio: [point.value for point in run.losses] for ratio, run in runs.items()},
        held_out={ratio: [(point.step, point.value) for point in run.curve] for ratio, run in runs.items()},
        data={}, arms=[], work=[], times=[],
    )  # fmt: skip


def measure_quality(found: DynamicViTRecord, folder: Path, pretrained: Pretrained) -> DynamicViTRecord:
    """Add the arms that the record lacks."""
    there = {each.arm for each in found.arms}
    missing = [arm for arm in ARMS if arm.name not in there]
    if not missing:
        return found
    prepared = [(task, task.prepare(pretrained)) for task in TASKS]
    found = found.model_copy(update={"data": {task.name: data.summary for task, data in prepared}})
    dense = {task.name: evaluate(task, data, pretrained, "sdpa", lambda: None) for task, data in prepared}
    for arm in track(missing, "quality"):
        with context(arm, folder, pretrained.model):
            outcomes = {task.name: _outcome(task, data, pretrained, arm, dense) for task, data in prepared}
        qualities = {
            task.name: quality(arm.name, outcomes[task.name], dense[task.name], data, task.higher_is_better)
            for task, data in prepared
        }
        pruned, whole = (_class_tokens(each["features"], pretrained) for each in (outcomes, dense))
        row = Found(arm=arm.name, tasks=qualities, class_token=torch.cosine_similarity(pruned, whole, dim=1).tolist())
        found = found.model_copy(update={"arms": [*found.arms, row]})
        save(found)
    return found


def _outcome(task: Task, data: Prepared, pretrained: Pretrained, arm: Arm, dense: dict[str, Outcome]) -> Outcome:
    """Of one arm; the dense model with ``sdpa`` ran already."""
    if (arm.chooser, arm.attention) == ("dense", "sdpa"):
        return dense[task.name]
    return evaluate(task, data, pretrained, ATTENTION[arm.attention], lambda: None)


def _class_tokens(outcome: Outcome, pretrained: Pretrained) -> Tensor:
    """(items, width): they come first in the features task's outputs."""
    return torch.from_numpy(outcome.outputs).double()[:, : pretrained.model.config.hidden_size]


@torch.inference_mode()
def measure_work(found: DynamicViTRecord, folder: Path, pretrained: Pretrained) -> DynamicViTRecord:
    """Count tokens and operations."""
    model, rows = pretrained.model, []
    model.set_attn_implementation("sdpa")
    for (pixels, _), ratio in itertools.product(SHAPES, (1.0, *RATIOS)):
        arm = Arm("dense" if ratio == 1 else "trained", ratio, "sdpa")
        with context(arm, folder, model) as trace, FlopCounterMode(display=False) as counter:
            length = model(**_picture(pixels, 1)).last_hidden_state.shape[1]
        tokens = [length] * model.config.num_hidden_layers if trace is None else trace.last.tokens[:, 0].tolist()
        rows.append(Work(pixels=pixels, ratio=ratio, tokens=tokens, flops=counter.get_total_flops()))
    found = found.model_copy(update={"work": rows})
    save(found)
    return found


@torch.inference_mode()
def measure_times(found: DynamicViTRecord, folder: Path, pretrained: Pretrained) -> DynamicViTRecord:
    """Time the dense model and the trained arms against each other."""
    arms = [arm for arm in ARMS if arm.chooser in ("dense", "trained")]
    times = []
    for pixels, batch in SHAPES:
        inputs = _picture(pixels, batch)
        functions = {arm.name: _forward(arm, folder, pretrained.model, inputs) for arm in arms}
        timings = interleaved(functions, seconds=SECONDS, min_sample=None)
        baseline = timings[ARMS[0].name]
        rows = [
            Speed(
                method=name, seconds=Spread(**vars(timing.seconds)), speedup=Spread(**vars(timing.speedup(baseline))),
                samples=len(timing.samples), disturbed=timing.disturbed if timing.waited else None,
            )
            for name, timing in timings.items()
        ]  # fmt: skip
        times.append(Times(pixels=pixels, batch=batch, machine=machine(), rows=rows))
    found = found.model_copy(update={"times": times})
    save(found)
    return found


def _forward(arm: Arm, folder: Path, model: Any, inputs: Inputs) -> Callable[[], object]:
    """One forward of an arm. The predictors are read beforehand; setting attention and hooks takes under 1 ms."""
    kept = None if arm.chooser == "dense" else DynamicViT(Predictors.load(predictors(folder, arm.ratio)))

    @contextmanager
    def applied() -> Iterator[None]:
        model.set_attn_implementation(ATTENTION[arm.attention])
        with nullcontext() if kept is None else kept.apply(model):
            yield

    def forward() -> object:
        with applied():
            return model(**inputs)

    return forward


def _picture(pixels: int, batch: int) -> Inputs:
    """Noise: what a forward costs does not depend on the picture: a stage leaves so many tokens of any."""
    return {"pixel_values": torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))}


def main(folder: Path, part: str) -> None:
    """Measure what is asked for."""
    pretrained = load("dinov2")
    register()
    found = begin(folder, pretrained)
    if part in ("all", "quality"):
        found = measure_quality(found, folder, pretrained)
        found = measure_work(found, folder, pretrained)
    if part in ("all", "time"):
        measure_times(found, folder, pretrained)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["quality"], ["time"]):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else "all")
