"""The base classes of methods by which layers see fewer tokens: frozen dataclasses.

A method that shortens the sequence makes a course for each forward, and decides after every layer which tokens go on to
the next one. The engine (:mod:`dynattn.pruning.engine`) does the rest: it gathers the tokens, shortens the mask, keeps
the class token, and puts every token back in its place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from torch import nn

from dynattn.pruning.course import Course, Start
from dynattn.pruning.engine import pruned
from dynattn.pruning.work import Trace

NUMBER = r"\d+(?:\.\d+)?"
"""A number in a name, as a regular expression; :func:`dynattn.methods.share.text` writes it."""


class TokenMethod(ABC):
    """A method by which the layers of a model see fewer tokens. It has a name, and is applied to a model."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short form, as in ``spatten-0.7``; :func:`dynattn.pruning.parse` turns it back into the method."""

    @classmethod
    @abstractmethod
    def from_name(cls, name: str) -> TokenMethod | None:
        """The method that ``name`` stands for, or None where it is not one of this class."""

    @abstractmethod
    def apply(self, model: nn.Module, *, zero_pruned: bool = False) -> AbstractContextManager[Trace]:
        """While active, the model's layers see the tokens alone that this method leaves.

        Args:
            model: a Transformers model.
            zero_pruned: put 0 in the place of tokens that are gone for good.

        Returns:
            A context manager, whose value records what each forward did.

        Raises:
            ValueError: the model's layers are not of a kind that can be handled, or it is being pruned already.
        """


class Pruning(TokenMethod):
    """A method that shortens the sequence across layers. Subclasses are frozen dataclasses, one file each."""

    prunes_heads: bool = False
    """Whether its decisions ever drop heads; such a method needs a model whose projections can be cut by head."""

    @abstractmethod
    def course(self, start: Start) -> Course:
        """The state for one forward."""

    def apply(self, model: nn.Module, *, zero_pruned: bool = False) -> AbstractContextManager[Trace]:
        """While active, the model's layers see only the tokens that this method leaves.

            with SpAtten(0.7).apply(model) as trace:
                output = model(**inputs)
            trace.last.tokens                         # how many each layer saw

        The output has its full length: a pruned token keeps the state that it had when it was pruned. On exit, also
        by an exception, the model is exactly what it was. It keeps its attention implementation, which may be set
        before or inside.

        Threads may share the model, as long as they finish before the context ends. Calls through
        ``torch.compile(model)`` are pruned too: they leave compiled code for the layers. A model that is being pruned
        can be neither copied nor pickled; its ``state_dict`` can.

        Args:
            model: a Transformers encoder or vision transformer, with or without a head on top.
            zero_pruned: put 0 in the place of pruned tokens after the last layer, where their last state stands
                otherwise. For sentence encoders, which average: the mean over all tokens is then that over the
                survivors, times their share, which normalising takes away.

        Returns:
            A context manager, whose value records what each forward did.

        Raises:
            ValueError: the model's layers are not of a kind that can be handled, or it is being pruned already.
        """
        return pruned(model, self.course, prunes_heads=self.prunes_heads, zero_pruned=zero_pruned)
