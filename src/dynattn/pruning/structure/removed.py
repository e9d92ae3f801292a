"""What was removed of a model, as a setting: it is applied for a while, for good, or written to a file.

from dynattn.pruning import Removed

Removed.load("removed.json").cut(model)
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from torch import nn

from dynattn.paths import write_text_whole
from dynattn.pruning.structure.cut import cut
from dynattn.pruning.structure.elements import Element
from dynattn.pruning.structure.masked import masked
from dynattn.pruning.structure.say import said

SETTING = "removed.json"
"""The name of the file that :meth:`Removed.export` writes where no config can say what was removed."""
_VERSION = 1


@final
@dataclass(frozen=True)
class Removed:
    """A set of elements that are removed from a model.

        with removed.apply(model): ...                 # by zeros, for a while
        removed.cut(model)                             # weights sliced, for good

    Args:
        elements: what is removed.

    Raises:
        TypeError: it is not a frozenset of elements.
    """

    elements: frozenset[Element] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.elements, frozenset) or not all(isinstance(one, Element) for one in self.elements):
            raise TypeError(
                f"Removed: elements must be a frozenset of Element: got {self.elements!r}; Removed.of takes names"
            )

    @classmethod
    def of(cls, *names: str) -> Removed:
        """The elements of these names.

            Removed.of("attention-3", "heads-2-0-1")

        Args:
            names: as :attr:`Element.name` gives them.

        Raises:
            ValueError: a name is no element's.
        """
        return cls(frozenset(map(Element.from_name, names)))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the elements: by layer, and inside of a layer attention first."""
        order = sorted(self.elements, key=lambda one: (one.layer, one.kind in ("mlp", "neurons"), one.start, one.stop))
        return tuple(one.name for one in order)

    def without(self, element: Element) -> Removed:
        """The same with one more element removed."""
        return Removed(self.elements | {element})

    def apply(self, model: nn.Module) -> AbstractContextManager[None]:
        """While active, the model works without the elements; see :func:`dynattn.pruning.structure.masked.masked`.

        Args:
            model: a Transformers encoder, decoder or vision encoder, with or without a head on top.

        Raises:
            TypeError: it is not a module.
            ValueError: the model is not of a known form, or an element does not fit it.
        """
        return masked(model, self.elements)

    def cut(self, model: nn.Module) -> None:
        """Slice the elements out of a model, in place, for good.

        Args:
            model: as for :meth:`apply`.

        Raises:
            TypeError: it is not a module.
            ValueError: the model is not of a known form, or an element does not fit it.
        """
        cut(model, self.elements)

    def export(self, model: Any, folder: str | Path) -> Literal["model", "setting"]:
        """Slice the elements out of a model, in place, and write what is left.

        Where the model's config can say what is left (fewer layers; the same number of heads or neurons in all of
        them), the folder is a Transformers model that ``from_pretrained`` loads without this package. Else it holds
        ``removed.json``, and the one line that makes the original model into this one is
        ``Removed.load(folder / "removed.json").cut(model)``.

        Args:
            model: a Transformers model, see :meth:`apply`.
            folder: made where there is none.

        Returns:
            Which of the two was written.

        Raises:
            TypeError: it is not a module.
            ValueError: the model is not of a known form, or an element does not fit it.
        """
        parts = cut(model, self.elements)
        if said(model, parts):
            model.save_pretrained(folder)
            return "model"
        self.save(Path(folder) / SETTING)
        return "setting"

    def save(self, path: str | Path) -> None:
        """Write the setting as JSON.

        Args:
            path: the file; its folder is made where there is none.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(target, json.dumps({"schema_version": _VERSION, "removed": list(self.names)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Removed:
        """Read a setting that :meth:`save` wrote.

        Args:
            path: the file.

        Raises:
            OSError: it cannot be read.
            ValueError: it holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            names = found["removed"]
            if found["schema_version"] != _VERSION or not all(isinstance(name, str) for name in names):
                raise ValueError(f"it is of version {found['schema_version']!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"Removed.load: {path} must hold what Removed.save wrote: it does not ({error}); write it again"
            ) from error
        return cls.of(*names)
