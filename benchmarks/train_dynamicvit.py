"""Train DynamicViT's predictors for DINOv2-small by self-distillation on photographs that packages carry.

python benchmarks/train_dynamicvit.py FOLDER             # ρ = 0.7, about three minutes; a stopped one is resumed
python benchmarks/train_dynamicvit.py FOLDER 0.9 0.5     # others

DINOv2 is frozen: the predictors alone are trained. Pictures of 168 pixels, 145 tokens. FOLDER/ratio-0.7/sdpa-seed0
holds the numbers, the loss of every step, the scores and, in ``model``, the predictors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dynattn.lab.data.pictures import HELD_OUT, TRAIN, Crops
from dynattn.lab.finetune.tokens import TokenDropping
from dynattn.lab.models import load
from dynattn.lab.training import Job
from dynattn.lab.training.run import run

RATIO = 0.7
PIXELS = 168
PICTURES = 480
HELD_OUT_PICTURES = 16
JOB = Job("sdpa", seed=0, steps=60, batch=8, learning_rate=1e-3, evaluate_every=20, save_every=10)


def predictors(folder: Path, ratio: float) -> Path:
    """Where the predictors of a ratio lie once they are trained."""
    return folder / f"ratio-{ratio:g}" / JOB.name / "model"


def main(folder: Path, ratios: tuple[float, ...]) -> None:
    """A line for each ratio: cosine of the gathered model's features to the dense ones, on the way and at the end."""
    pretrained = load("dinov2")
    pictures, held_out = Crops(TRAIN, PICTURES, PIXELS), Crops(HELD_OUT, HELD_OUT_PICTURES, PIXELS)
    source = "crops of photographs in scikit-image, some with a digit of MNIST"
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:

        def stage(title: str, steps: int) -> Callable[[], None]:
            task = progress.add_task(title, total=steps)
            return lambda: progress.advance(task)

        for ratio in ratios:
            experiment = TokenDropping(pretrained, pictures, held_out, source, ratio)  # type: ignore[arg-type]
            found = run(JOB, experiment, folder / f"ratio-{ratio:g}", stage, keep_model=True)
            curve = ", ".join(f"{point.value:.4f} after {point.step}" for point in found.curve)
            progress.console.print(f"keep ratio {ratio:g}: {curve} steps", highlight=False)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), tuple(map(float, sys.argv[2:])) or (RATIO,))
