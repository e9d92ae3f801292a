"""DynamicViT on DINOv2-small: quality, arithmetic and time of the dense model and with tokens dropped.

python benchmarks/dynamicvit.py FOLDER             # of train_dynamicvit.py: all that follows, a few minutes
python benchmarks/dynamicvit.py FOLDER baselines   # quality of the arms that need no training
python benchmarks/dynamicvit.py FOLDER quality     # of all arms, and the arithmetic
python benchmarks/dynamicvit.py FOLDER time        # needs an idle machine, the others do not
python benchmarks/dynamicvit.py FOLDER cpu-time    # in its place on a shared one: the CPU time of one thread

Writes benchmarks/results/pruning/dynamicvit.json after every arm: a run that was killed goes on where it stopped.

An arm is who chooses the tokens (trained predictors, untrained ones, or chance), the keep ratio of a stage, and the
attention of the layers. The predictors are those trained for a keep ratio of 0.7, at the other ratios too. Everything
is measured with tokens really gathered; floating point operations are counted by PyTorch's own counter in a real
forward, predictors included.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_dynamicvit import JOB, PIXELS, RATIO, predictors

from dynattn.integrations.transformers import register
from dynattn.lab.compare.results import Speed
from dynattn.lab.figures import Quality, Record, Spread
from dynattn.lab.machine import machine
from dynattn.lab.models import Pretrained, load
from dynattn.lab.scoring import evaluate
from dynattn.lab.statistics import quality
from dynattn.lab.tasks import Outcome, Prepared, Saliency
from dynattn.lab.tasks.base import Inputs
from dynattn.lab.timing import interleaved
from dynattn.lab.training.checkpoints import write_json
from dynattn.lab.training.results import Run
from dynattn.pruning.dynamicvit import DynamicViT
from dynattn.pruning.predictor import Predictors

RESULT = Path(__file__).parent / "results" / "pruning" / "dynamicvit.json"
ATTENTION = {"sdpa": "sdpa", "nm-1-2": "dynattn:nm-1-2"}
RATIOS = (0.9, 0.7, 0.5)
TASKS: tuple[Saliency, ...] = (Saliency(items=16, pixels=PIXELS), Saliency(items=8, pixels=322))
"""At the pictures' size that the predictors were trained at, and at about twice that: do they carry over?"""

SHAPES = ((322, 1), (168, 4))  # pixels and pictures at once
SECONDS = 8.0  # each shape is timed at least so long
LEAST = 5  # the fewest rounds; quartiles and the number of rounds are reported


class Arm(NamedTuple):
    """Who chooses, how much a stage leaves, and the layers' attention; the dense model has neither of the first."""

    chooser: str
    ratio: float
    attention: str

    @property
    def name(self) -> str:
        """The name that its rows carry."""
        return f"{self.chooser} {self.ratio:g} {self.attention}"


ARMS = (
    *(Arm("dense", 1.0, attention) for attention in ATTENTION),
    *(Arm(chooser, ratio, "sdpa") for chooser in ("random", "untrained") for ratio in RATIOS),
    *(Arm("trained", ratio, attention) for ratio in RATIOS for attention in ATTENTION),
)


class Found(Record):
    """What came of one arm.

    Attributes:
        arm: its name.
        saliency: scores, and differences to the dense model with ``sdpa``.
        class_token: cosine of the class token to the dense model's, one a picture.
        features: cosine of all tokens' features, as the features task takes it.
    """

    arm: str
    saliency: Quality
    class_token: list[float]
    features: list[float]


class Judged(Record):
    """Quality at one size of pictures; ``data`` is a line on them."""

    pixels: int
    data: str
    arms: list[Found]


class Work(Record):
    """Arithmetic of a forward of one picture with dense attention.

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
    clock: Literal["wall", "cpu"]
    machine: dict[str, Any]
    rows: list[Speed]


class DynamicViTRecord(Record):
    """Everything.

    Attributes:
        model: what it is.
        machine: where the record was begun.
        training: settings of the training.
        losses: of the training, one a step; empty before there was one.
        held_out: steps, and the mean cosine to the dense features on the pictures held out.
        quality: at each size of pictures.
        work: arithmetic.
        times: time.
    """

    schema_version: Literal[1] = 1
    model: str
    machine: dict[str, Any]
    training: dict[str, Any]
    losses: list[float]
    held_out: list[tuple[int, float]]
    quality: list[Judged]
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
        "trained": lambda: Predictors.load(predictors(folder, RATIO)),
        "untrained": lambda: Predictors(width, keep_ratio=arm.ratio).eval(),
        "random": lambda: Chance(width, arm.ratio),
    }[arm.chooser]()
    return DynamicViT(made, arm.ratio).apply(model)


def save(found: DynamicViTRecord) -> None:
    """Write the record; a kill leaves the one before or this one, whole."""
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULT, found.model_dump())


def begin(folder: Path, pretrained: Pretrained) -> DynamicViTRecord:
    """The record there is, or a new one; with the training's curves once there are any."""
    if RESULT.exists():
        found = DynamicViTRecord.model_validate_json(RESULT.read_text(encoding="utf-8"))
    else:
        training = {"pixels": PIXELS, "keep_ratio": RATIO, **dataclasses.asdict(JOB)}
        found = DynamicViTRecord(
            model=pretrained.description, machine=machine(), training=training,
            losses=[], held_out=[], quality=[], work=[], times=[],
        )  # fmt: skip
    path = predictors(folder, RATIO).parent / "result.json"
    if not path.exists():
        return found
    run = Run.model_validate_json(path.read_text(encoding="utf-8"))
    curves = {"losses": [p.value for p in run.losses], "held_out": [(p.step, p.value) for p in run.curve]}
    return found.model_copy(update=curves)


def measure_quality(
    found: DynamicViTRecord, folder: Path, pretrained: Pretrained, task: Saliency, arms: Sequence[Arm]
) -> DynamicViTRecord:
    """Add those of the arms that the record lacks at the task's size."""
    before = next((each for each in found.quality if each.pixels == task.pixels), None)
    rows = list(before.arms) if before else []
    missing = [arm for arm in arms if arm.name not in {row.arm for row in rows}]
    if not missing:
        return found
    others = [each for each in found.quality if each.pixels != task.pixels]
    data = task.prepare(pretrained)
    dense = _seen(pretrained, task, data, ATTENTION["sdpa"])
    for arm in track(missing, f"quality at {task.pixels} pixels"):
        with context(arm, folder, pretrained.model):
            seen = dense if arm == ARMS[0] else _seen(pretrained, task, data, ATTENTION[arm.attention])
        row = Found(
            arm=arm.name,
            saliency=quality(arm.name, seen.outcome, dense.outcome, data, task.higher_is_better),
            class_token=torch.cosine_similarity(seen.hidden[:, 0], dense.hidden[:, 0]).tolist(),
            features=torch.cosine_similarity(seen.hidden.flatten(1), dense.hidden.flatten(1)).tolist(),
        )
        rows.append(row)
        judged = Judged(pixels=task.pixels, data=data.summary, arms=rows)
        found = found.model_copy(update={"quality": [*others, judged]})
        save(found)
    return found


class Look(NamedTuple):
    """What a model made of the task's pictures; ``hidden`` is (pictures, length, width), float64."""

    outcome: Outcome
    hidden: Tensor


def _seen(pretrained: Pretrained, task: Saliency, data: Prepared, implementation: str) -> Look:
    hidden: list[Tensor] = []
    handle = pretrained.model.register_forward_hook(lambda _, args, output: hidden.append(output.last_hidden_state))
    try:
        outcome = evaluate(task, data, pretrained, implementation, lambda: None)
    finally:
        handle.remove()
    return Look(outcome, torch.cat(hidden).double())


@torch.inference_mode()
def measure_work(found: DynamicViTRecord, folder: Path, pretrained: Pretrained) -> DynamicViTRecord:
    """Count tokens and operations; with unfused attention, whose products PyTorch's counter sees on a CPU too."""
    model, rows = pretrained.model, []
    model.set_attn_implementation("eager")
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
def measure_times(
    found: DynamicViTRecord, folder: Path, pretrained: Pretrained, clock: Literal["wall", "cpu"]
) -> DynamicViTRecord:
    """Time the dense model and the trained arms against each other, at the shapes that the record lacks.

    What a thread waits for a core is no part of its CPU time, but what it waits for memory is.
    """
    seconds = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    if clock == "cpu":
        torch.set_num_threads(1)
    arms = [arm for arm in ARMS if arm.chooser in ("dense", "trained")]
    for pixels, batch in SHAPES[len(found.times) :]:
        inputs = _picture(pixels, batch)
        functions = {arm.name: _forward(arm, folder, pretrained.model, inputs) for arm in arms}
        timings = interleaved(functions, seconds=SECONDS, least=LEAST, min_sample=None, clock=seconds)
        baseline = timings[ARMS[0].name]
        rows = [
            Speed(
                method=name, seconds=Spread(**vars(timing.seconds)), speedup=Spread(**vars(timing.speedup(baseline))),
                samples=len(timing.samples), disturbed=timing.disturbed if timing.waited else None,
            )
            for name, timing in timings.items()
        ]  # fmt: skip
        times = Times(pixels=pixels, batch=batch, clock=clock, machine=machine(), rows=rows)
        found = found.model_copy(update={"times": [*found.times, times]})
        save(found)
    return found


def _forward(arm: Arm, folder: Path, model: Any, inputs: Inputs) -> Callable[[], object]:
    """One forward of an arm. The predictors are read beforehand; setting attention and hooks takes under 1 ms."""
    kept = None if arm.chooser == "dense" else DynamicViT(Predictors.load(predictors(folder, RATIO)), arm.ratio)

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
    if part in ("all", "baselines"):
        for task in TASKS:
            found = measure_quality(found, folder, pretrained, task, [a for a in ARMS if a.chooser != "trained"])
    if part in ("all", "quality"):
        for task in TASKS:
            found = measure_quality(found, folder, pretrained, task, ARMS)
        found = measure_work(found, folder, pretrained)
    if part in ("all", "time", "cpu-time"):
        measure_times(found, folder, pretrained, "cpu" if part == "cpu-time" else "wall")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["baselines"], ["quality"], ["time"], ["cpu-time"]):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else "all")
