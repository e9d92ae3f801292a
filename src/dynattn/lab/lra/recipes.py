"""The recipes of tasks in each size: data, model and steps. The small sizes take minutes on two cores.

The published sizes are those of the arena's paper and code; where the data is another one, the model and the number of
passes over the data are the published ones, and the rate is that of the published schedule at its highest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from dynattn.lab.lra import images, listops, text_bytes
from dynattn.lab.lra.data import Data
from dynattn.lab.lra.listops import Rules

Pool = Literal["mean", "cls"]


@dataclass(frozen=True)
class Recipe:
    """The data and the numbers of a task in one size.

    Attributes:
        data: reads or makes the data.
        width, layers, heads, mlp, pool, dropout: of the model, see :class:`dynattn.lab.lra.model.Config`.
        steps, batch, learning_rate, warmup, weight_decay: of a run, see :class:`dynattn.lab.training.Job`.
    """

    data: Callable[[], Data]
    width: int
    layers: int
    heads: int
    mlp: int
    pool: Pool
    dropout: float
    steps: int
    batch: int
    learning_rate: float
    warmup: float = 0.1
    weight_decay: float = 0.0


TASKS: dict[str, str] = {
    "listops": "nested expressions over digits: their value",
    "image": "handwritten digits, a token a pixel",
    "fashion": "Fashion-MNIST, a token a pixel",
    "bytes": "e-mails, a token a byte: spam or not",
}
"""Tasks by name, with a title."""

SIZES = ("small", "published")

_RECIPES: dict[tuple[str, str], Recipe] = {
    ("listops", "small"): Recipe(
        partial(listops.load, Rules(max_depth=4, max_args=5, min_length=15, max_length=64), train=50_000, test=1000),
        width=64, layers=2, heads=4, mlp=128, pool="cls", dropout=0.0, steps=800, batch=64, learning_rate=2e-3,
    ),
    ("listops", "published"): Recipe(
        partial(listops.load, Rules(), train=96_000, test=2000),
        width=512, layers=6, heads=8, mlp=2048, pool="cls", dropout=0.1,
        steps=5000, batch=32, learning_rate=1.6e-3, warmup=0.2, weight_decay=0.1,
    ),
    ("image", "small"): Recipe(
        images.digits,
        width=64, layers=2, heads=4, mlp=128, pool="cls", dropout=0.1, steps=500, batch=32, learning_rate=2e-3,
    ),
    ("image", "published"): Recipe(
        images.mnist,
        width=32, layers=1, heads=1, mlp=64, pool="cls", dropout=0.3,
        steps=3000, batch=256, learning_rate=5e-4, warmup=0.005,
    ),
    ("fashion", "small"): Recipe(
        partial(images.fashion, pixels=14, train=10_000, test=1000),
        width=64, layers=2, heads=4, mlp=128, pool="cls", dropout=0.1, steps=300, batch=32, learning_rate=2e-3,
    ),
    ("fashion", "published"): Recipe(
        images.fashion,
        width=32, layers=1, heads=1, mlp=64, pool="cls", dropout=0.3,
        steps=46_000, batch=256, learning_rate=5e-4, warmup=0.005,
    ),
    ("bytes", "small"): Recipe(
        partial(text_bytes.load, 1024),
        width=64, layers=1, heads=2, mlp=128, pool="mean", dropout=0.1, steps=400, batch=16, learning_rate=3e-3,
    ),
    ("bytes", "published"): Recipe(
        partial(text_bytes.load, 4096),
        width=256, layers=4, heads=4, mlp=1024, pool="cls", dropout=0.1,
        steps=20_000, batch=32, learning_rate=5.6e-4, warmup=0.4, weight_decay=0.1,
    ),
}  # fmt: skip


def find(task: str, size: str) -> Recipe:
    """The recipe of a task in a size.

    Raises:
        ValueError: there is none.
    """
    if task not in TASKS:
        raise ValueError(f"lra: task must be one of {', '.join(TASKS)}: got {task!r}; check --task")
    if size not in SIZES:
        raise ValueError(f"lra: size must be one of {', '.join(SIZES)}: got {size!r}; check --size")
    return _RECIPES[task, size]
