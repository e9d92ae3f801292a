"""A method with the thresholds that calibration found for a model, as a setting: it is applied, or written to a file.

from dynattn.sparsity import Calibrated

with Calibrated.load("teal.json").apply(model): ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from dynattn.paths import write_text_whole
from dynattn.sparsity.activations.base import ActivationPlan
from dynattn.sparsity.activations.engine import sparse
from dynattn.sparsity.registry import parse
from dynattn.sparsity.sites import Site

_VERSION = 1


@final
@dataclass(frozen=True)
class Calibrated:
    """A method and its thresholds. They are of one model, and of the texts that it was calibrated on.

    Args:
        method: the method, or a :class:`~dynattn.sparsity.Sparsity` of several.
        thresholds: by :attr:`Site.name <dynattn.sparsity.Site>`: one number, or one for each input.

    Raises:
        TypeError: the method is none that chooses inputs.
    """

    method: ActivationPlan
    thresholds: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        if not isinstance(self.method, ActivationPlan):
            raise TypeError(f"Calibrated: method must be one that chooses inputs: got {self.method!r}; try TEAL(0.5)")
        numbers = {name: tuple(map(float, found)) for name, found in self.thresholds.items()}
        object.__setattr__(self, "thresholds", numbers)

    def apply(self, model: nn.Module) -> AbstractContextManager[tuple[Site, ...]]:
        """See :meth:`dynattn.sparsity.ActivationPlan.apply`.

        Args:
            model: the model that was calibrated.
        """
        return sparse(model, self.method, self.thresholds)

    def save(self, path: str | Path) -> None:
        """Write the setting as JSON.

        Args:
            path: the file; its folder is made where there is none.
        """
        found = {name: list(numbers) for name, numbers in self.thresholds.items()}
        text = json.dumps({"schema_version": _VERSION, "method": self.method.name, "thresholds": found}) + "\n"
        write_text_whole(Path(path), text)

    @classmethod
    def load(cls, path: str | Path) -> Calibrated:
        """Read a setting that :meth:`save` wrote.

        Args:
            path: the file.

        Raises:
            OSError: it cannot be read.
            ValueError: it holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found["schema_version"] != _VERSION:
                raise ValueError(f"it is of version {found['schema_version']!r}")
            method = parse(found["method"])
            if not isinstance(method, ActivationPlan):
                raise ValueError(f"{method.name} chooses no inputs")
            return cls(method, {name: tuple(numbers) for name, numbers in found["thresholds"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Calibrated.load: {path} must hold what Calibrated.save wrote: it does not ({error}); write it again"
            ) from error
