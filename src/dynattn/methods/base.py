"""What every method shares: a name that round-trips, and being immutable."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Method(ABC):
    """What to keep of the attention weights. Subclasses are frozen dataclasses, one file each."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short form, as in ``nm-2-4``; :func:`dynattn.methods.parse` turns it back into the method."""

    @property
    @abstractmethod
    def keeps_everything(self) -> bool:
        """True where the method is dense attention exactly."""
