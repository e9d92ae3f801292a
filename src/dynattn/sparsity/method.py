"""What all methods of this package have: a name, and a context in which a model's linear layers work by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from torch import nn


class SparsityMethod(ABC):
    """A method that leaves weights or inputs of linear layers out. Subclasses are frozen dataclasses, one file each."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short form, as in ``magnitude-0.5``; :func:`dynattn.sparsity.parse` turns it back into the method."""

    @classmethod
    @abstractmethod
    def from_name(cls, name: str) -> SparsityMethod | None:
        """The method that ``name`` stands for, or None where it is not one of this class."""

    @abstractmethod
    def apply(self, model: nn.Module) -> AbstractContextManager[Any]:
        """While active, the model's linear layers work by this method; on exit, also by an exception, as before."""
