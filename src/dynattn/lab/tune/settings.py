"""What is asked for; what cannot be is refused before any work."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynattn.lab.frontier.cell import digest
from dynattn.lab.models import DTYPES
from dynattn.lab.tasks.texts import Text

Phase = Literal["prefill", "decode", "both"]
PHASES: tuple[Phase, ...] = ("prefill", "decode", "both")

LEAST_LENGTH = 16
MOST_LENGTH = 2**24 - 1
LEAST_LOSS = 1e-9
MINUTES = 6.0
LEAST_MINUTES = 0.05
MOST_MINUTES = 7 * 24 * 60.0

_PREFILL = 0.6  # of the minutes, where both phases take part


def share_of_prefill(phase: str) -> float:
    """The share of the minutes that the prefill phase may take."""
    return _PREFILL if phase == "both" else 1.0


@dataclass(frozen=True)
class Settings:
    """What to tune, and what it may lose.

    Args:
        model: a name that :func:`dynattn.lab.models.load` takes.
        texts: the user's own, see :func:`dynattn.lab.tasks.texts.read`; None for the data that packages carry.
        max_loss: the largest relative loss of the task's score, above 0 and at most 1. Of a likelihood it is
            ``exp(ΔNLL) − 1``, by how much the perplexity grows.
        phase: the phase of the model's work; both are searched and proved one after the other.
        length: tokens; None for the longest that the model, the texts and the minutes allow.
        dtype: the dtype of the weights, one of :data:`dynattn.lab.models.DTYPES`.
        minutes: how long to go on. Less time means fewer texts and candidates, never a weaker claim.
        task: the user's own, ``module:function``, or lm-eval's by name; see :mod:`dynattn.lab.tune.own`.

    Raises:
        ValueError: a value is out of its range.
    """

    model: str
    texts: Path | None = None
    max_loss: float = 0.01
    phase: Phase = "prefill"
    length: int | None = None
    dtype: str = "float32"
    minutes: float = MINUTES
    task: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_loss) and 0 < self.max_loss <= 1):
            raise ValueError(
                f"tune: max-loss must be above 0% and at most 100%: got {self.max_loss:.4g}; a sparse model that "
                "loses nothing at all can be proved by no number of texts, so try 1%"
            )
        if self.max_loss < LEAST_LOSS:
            raise ValueError(
                f"tune: max-loss must be at least {LEAST_LOSS:g}: got {self.max_loss:.4g}; so little can be proved by "
                "no number of texts at hand, so try 1%"
            )
        if self.phase not in PHASES:
            raise ValueError(
                f"tune: phase must be {', '.join(PHASES[:-1])} or {PHASES[-1]}: got {self.phase!r}; leave it "
                "out for prefill"
            )
        if self.length is not None and not LEAST_LENGTH <= self.length <= MOST_LENGTH:
            raise ValueError(
                f"tune: length must be between {LEAST_LENGTH} and {MOST_LENGTH} tokens: got {self.length}; leave it out"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"tune: dtype must be one of {', '.join(DTYPES)}: got {self.dtype!r}; leave it out")
        if not (math.isfinite(self.minutes) and LEAST_MINUTES <= self.minutes <= MOST_MINUTES):
            raise ValueError(
                f"tune: minutes must be between {LEAST_MINUTES} and {MOST_MINUTES:.0f}, a week: got {self.minutes}; "
                f"leave it out for {MINUTES:g}"
            )
        if self.task is not None and self.phase != "prefill":
            raise ValueError(f"tune: --task is of the prefill phase: leave it or --phase {self.phase} out")
        if self.task is not None and not (self.task and all(self.task.split(":", 1))):
            raise ValueError(
                f"tune: task must be module:function, or the name of a task of lm-eval's: got {self.task!r}; for "
                "example my_task:make"
            )

    def plain(self) -> dict[str, Any]:
        """As a record holds them."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in self._fields().items()}

    def digest(self, texts: tuple[Text, ...] | None, more: Any) -> str:
        """Tells runs apart: by these settings, what the texts say, and what else decides the results.

        Args:
            texts: what was read from ``texts``.
            more: for example the weights' fingerprint and the machine, as JSON can hold it.
        """
        fields = {**self.plain(), "texts": None if texts is None else digest([list(text) for text in texts])}
        return digest([fields, more])

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
