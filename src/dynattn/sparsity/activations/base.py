"""The base classes of methods that choose inputs of linear layers anew for each token: frozen dataclasses."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from dynattn.methods import share
from dynattn.sparsity.activations.engine import sparse
from dynattn.sparsity.method import SparsityMethod
from dynattn.sparsity.sites import Site


class ActivationPlan(SparsityMethod):
    """Which method chooses the inputs of which linear layer."""

    @abstractmethod
    def at(self, layer: int, projection: str) -> ActivationSparsity | None:
        """The method at a place, None where the layer is dense.

        Args:
            layer: the number of the layer, from 0.
            projection: one of :data:`dynattn.sparsity.sites.PROJECTIONS`.
        """

    @property
    def needs_thresholds(self) -> bool:
        """Whether it must be calibrated before it is applied, see :func:`dynattn.sparsity.calibrate_thresholds`."""
        return False

    def apply(self, model: nn.Module) -> AbstractContextManager[tuple[Site, ...]]:
        """While active, the model's linear layers leave out what the methods leave out. Heads and poolers are whole.

            with NMActivations(8, 16).apply(model):
                output = model(**inputs)

        On exit, also by an exception, the model is what it was. Meanwhile the weights are stored by input (there is one
        copy of them all the same), and their norms are those that they had when the context began. Gradients take the
        choice as a constant. Threads may share the model, as long as they finish before the context ends. Meanwhile the
        model can be neither copied nor pickled.

        Args:
            model: a Transformers encoder, decoder or vision encoder, with or without a head on top.

        Returns:
            A context manager, whose value is the sites that take part; where a method keeps everything, none does.

        Raises:
            TypeError: it is not a module.
            ValueError: the model's layers cannot be named, their forwards are replaced already, or a method must be
                calibrated first.
        """
        return sparse(model, self, {})


class ActivationSparsity(ActivationPlan):
    """A method that chooses inputs of linear layers, anew for each token.

    Attributes:
        shares_choice: whether layers that read the same input share one choice, by the norms of all their weights.
        chooses_neurons: whether it chooses the neurons of an MLP by the output of its gate, where there is a gate.
    """

    shares_choice: ClassVar[bool] = False
    chooses_neurons: ClassVar[bool] = False

    @property
    @abstractmethod
    def keeps_everything(self) -> bool:
        """True where the linear layers stay dense."""

    @abstractmethod
    def keep(self, x: Tensor, site: Site) -> Tensor:
        """Which inputs stay: a function of each row alone. A NaN always stays, so that it reaches the output.

        Args:
            x: (tokens, in).
            site: the linear layer.

        Returns:
            (tokens, in) bool.
        """

    def fused(self, site: Site) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
        """The linear layer with the choice made inside, where an operator computes both at once; else None.

        Args:
            site: the linear layer.

        Returns:
            Gives (..., out) of the inputs (..., in), the weight (in, out) and the bias: what
            :func:`dynattn.ops.linear.linear_rows` gives with :meth:`keep`.
        """
        return None

    def at(self, layer: int, projection: str) -> ActivationSparsity | None:
        """Itself, everywhere."""
        return self


class ByShare(ActivationSparsity):
    """A method that keeps a share, named by it.

    Attributes:
        word: how its names begin.
        keep_ratio: the share that stays, between 1e-6 and 1: a field of the dataclass.
    """

    word: ClassVar[str]
    keep_ratio: float

    def __post_init__(self) -> None:
        share.check(type(self).__name__, self.keep_ratio, "keep_ratio")

    @property
    def name(self) -> str:
        """The word and the share, as in ``wina-0.5``."""
        return f"{self.word}-{share.text(self.keep_ratio)}"

    @classmethod
    def from_name(cls, name: str) -> Self | None:
        """The method that ``name`` stands for, or None where it is not a name of this class."""
        match = re.fullmatch(rf"{cls.word}-({share.NUMBER})", name)
        return cls(float(match[1])) if match else None  # type: ignore[call-arg]  # the dataclass's field

    @property
    def keeps_everything(self) -> bool:
        """True where the share is 1."""
        return self.keep_ratio == 1
