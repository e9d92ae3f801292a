"""The base class of methods that set weights of linear layers to 0: frozen dataclasses that give a mask for each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from dynattn.sparsity.linears import linears, turned
from dynattn.sparsity.method import SparsityMethod
from dynattn.sparsity.weights.calibration import InputStatistics


@dataclass(frozen=True)
class Kept:
    """How many weights of each linear layer are left.

    Attributes:
        counts: by the layer's name in the model.
        sizes: how many weights it has.
    """

    counts: dict[str, int]
    sizes: dict[str, int]

    @property
    def share(self) -> float:
        """Of all weights of these layers."""
        return sum(self.counts.values()) / sum(self.sizes.values())


class WeightSparsity(SparsityMethod):
    """A method that chooses weights, before any input is seen. Subclasses are frozen dataclasses, one file each."""

    @property
    def looks_at_inputs(self) -> bool:
        """Whether the choice needs :func:`dynattn.sparsity.calibrate`'s statistics."""
        return False

    @abstractmethod
    def masks(
        self, weights: Mapping[str, Tensor], statistics: Mapping[str, InputStatistics] | None = None
    ) -> dict[str, Tensor]:
        """Which weights stay.

        Args:
            weights: the weight of each linear layer, (out, in), by the layer's name.
            statistics: of the inputs of each layer, by its name, for methods that look at them.

        Returns:
            A mask for each, (out, in) bool.

        Raises:
            ValueError: the method looks at inputs, and there are no statistics.
        """

    @contextmanager
    def apply(self, model: nn.Module, statistics: Mapping[str, InputStatistics] | None = None) -> Iterator[Kept]:
        """While active, the weights that are not kept are 0. All linear layers take part but heads and poolers.

        On exit, also by an exception, the weights are exactly what they were. Nothing gets faster: zeros are multiplied
        like other numbers here.

        Args:
            model: a Transformers model, or any other one with linear layers.
            statistics: see :meth:`masks`.

        Yields:
            How many weights are kept.

        Raises:
            TypeError: it is not a module.
            ValueError: it has no linear layers, or the method looks at inputs, and there are no statistics.
        """
        with self.prepared(model, statistics)() as kept:
            yield kept

    def prepared(
        self, model: nn.Module, statistics: Mapping[str, InputStatistics] | None = None
    ) -> Callable[[], AbstractContextManager[Kept]]:
        """Choose once, for a model that is to change between all of its weights and those that are kept many times.

        Args:
            model, statistics: see :meth:`apply`. The weights that are kept are copied: they take as much memory again.

        Returns:
            What :meth:`apply` does, in no time; the weights must not change meanwhile.

        Raises:
            TypeError, ValueError: as :meth:`apply`.
        """
        layers = linears(model)
        masks = self._masks(layers, statistics)
        thin = {name: layer.weight.data.masked_fill(~masks[name], 0) for name, layer in layers.items()}
        kept = _counted(masks)

        @contextmanager
        def switched() -> Iterator[Kept]:
            before = {name: layer.weight.data for name, layer in layers.items()}
            try:
                for name, layer in layers.items():
                    layer.weight.data = thin[name]
                yield kept
            finally:
                for name, layer in layers.items():
                    layer.weight.data = before[name]

        return switched

    def fix(self, model: nn.Module, statistics: Mapping[str, InputStatistics] | None = None) -> Kept:
        """Set the weights that are not kept to 0 for good; training leaves them there.

        Their gradients are 0 from now on, so optimizers that change a weight by its own gradients and by itself, as
        SGD and AdamW do, keep them at 0. Make the optimizer afterwards, whose momentum would go on otherwise. A copy
        (``copy.deepcopy``, pickle) has no hooks: ``fix`` it again.

        Args:
            model, statistics: see :meth:`apply`.

        Returns:
            How many weights are kept.

        Raises:
            TypeError, ValueError: as :meth:`apply`.
        """
        layers = linears(model)
        masks = self._masks(layers, statistics)
        for name, layer in layers.items():
            weight, mask = layer.weight, masks[name]
            weight.data.masked_fill_(~mask, 0)
            asked = weight.requires_grad
            weight.requires_grad_(True).register_hook(
                lambda gradient, mask=mask: gradient.masked_fill(~mask.to(gradient.device), 0)
            )
            weight.requires_grad_(asked)  # the hook stays, for when it is trained
        return _counted(masks)

    def _masks(
        self, layers: Mapping[str, nn.Linear], statistics: Mapping[str, InputStatistics] | None
    ) -> dict[str, Tensor]:
        """Masks in the shape of the weights, which ``Conv1D`` keeps as (in, out)."""
        weights = {name: turned(layer, layer.weight.detach()) for name, layer in layers.items()}
        return {name: turned(layers[name], mask) for name, mask in self.masks(weights, statistics).items()}


def _counted(masks: Mapping[str, Tensor]) -> Kept:
    return Kept(
        {name: int(mask.sum()) for name, mask in masks.items()}, {name: mask.numel() for name, mask in masks.items()}
    )
