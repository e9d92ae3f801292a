"""The base class of recipes, and a training at work: forwards with some weights less, and what each step of the
optimizer does besides.

    W̃ = W ∘ (E + D · (1 - E))           what the forward multiplies by; the gradient of W̃ goes to all of W
    SAD = Σ over layers of |E_t - E_{t-1}|        how many entries of the masks changed: settled masks have a small one
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynattn.pruning.replaced import ReplacedForward, attaching, replace
from dynattn.sparsity.linears import linears, turned
from dynattn.sparsity.sites import given
from dynattn.sparsity.weights.nm import NMWeights, best


class Stage(NamedTuple):
    """What holds at a step of the training.

    Attributes:
        n: how many weights of each group count.
        m: how many weights a group has.
        rest: the factor of the others, D: 0 where they do not count at all, 1 where the model is dense.
    """

    n: int
    m: int
    rest: float = 0.0

    def kept(self, weight: Tensor) -> Tensor:
        """The weights that count, (out, in) bool, by their magnitude.

        Args:
            weight: (out, in).
        """
        return best(weight.detach().abs(), self.n, self.m)


class Recipe(ABC):
    """How a model is trained to have N:M weights. Subclasses are frozen dataclasses, one file each.

    Attributes:
        n: how many weights of each group are left in the end.
        m: how many a group has.
    """

    n: int
    m: int

    @property
    @abstractmethod
    def name(self) -> str:
        """Short form, as in ``sr-ste-2-4``; :func:`dynattn.sparsity.training.parse` turns it back into the recipe."""

    @classmethod
    @abstractmethod
    def from_name(cls, name: str) -> Recipe | None:
        """The recipe that ``name`` stands for, or None where it is not one of this class."""

    @property
    def kept(self) -> NMWeights:
        """What is left when the training is over: ``recipe.kept.fix(model)`` sets the other weights to 0 for good."""
        return NMWeights(self.n, self.m)

    def stage(self, step: int, steps: int | None) -> Stage:
        """What holds at a step.

        Args:
            step: from 0.
            steps: of the training; None where nobody said.
        """
        return Stage(self.n, self.m)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor, rest: float) -> Tensor:
        """The output of a linear layer, with its gradients.

        Args:
            x: (..., in).
            weight: (out, in).
            bias: (out,), or None.
            kept: (out, in) bool, the weights that count.
            rest: the factor of the others.
        """
        return nn.functional.linear(x, straight_through(weight, kept, rest), bias)

    @torch.no_grad()  # noqa: B027  # most recipes need change nothing
    def adjust(self, weight: nn.Parameter, kept: Tensor, rate: float) -> None:
        """Change a weight or its gradient, right before a step of the optimizer.

        Args:
            weight: the parameter, with its gradient.
            kept: in its shape, the weights that counted.
            rate: the learning rate.
        """

    @contextmanager
    def train(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, steps: int | None = None
    ) -> Iterator[Training]:
        """While active, the model's linear layers multiply by the weights that count, and steps of the optimizer make
        it go on. Heads, poolers and embeddings have no part.

        Afterwards the model is dense, with all the weights that were trained: ``recipe.kept.fix(model)`` comes next.

        Args:
            model: a Transformers model, or any other one with linear layers. It is not copied meanwhile.
            optimizer: of PyTorch; None where :meth:`Training.attach` gets it later.
            steps: how many steps there will be, for recipes that change with them.

        Yields:
            The training.

        Raises:
            TypeError: it is not a module.
            ValueError: it has no linear layers, is in such a training already, or the recipe needs ``steps``.
        """
        training = Training(self, linears(model), steps)
        with ExitStack() as undo:
            with attaching:
                training.enter(undo)
            if optimizer is not None:
                training.attach(optimizer)
            yield training


class Training:
    """A training at work, as :meth:`Recipe.train` gives it.

    Attributes:
        step: how many steps the optimizer has made.
        changed: for each of them, how many entries of all masks it changed.
    """

    def __init__(self, recipe: Recipe, layers: Mapping[str, Any], steps: int | None) -> None:
        self.recipe, self.steps = recipe, steps
        self.step, self.changed = 0, list[int]()
        self._layers = layers
        self._masks: dict[str, tuple[Any, Tensor]] = {}  # with what they were made of
        self._counted: dict[str, Tensor] = {}  # the masks of the step that the optimizer is about to make
        self._making = threading.Lock()
        self._undo = ExitStack()
        self.stage = recipe.stage(0, steps)

    @property
    def kept(self) -> dict[str, Tensor]:
        """The weights that count now, (out, in) bool, by the layer's name."""
        return {name: self._kept(name) for name in self._layers}

    def enter(self, undo: ExitStack) -> None:
        """Put the recipe's products in the place of the layers' forwards.

        Args:
            undo: puts the forwards back when it is closed.

        Raises:
            ValueError: the model is in a training already, or is being pruned.
        """
        if any(isinstance(vars(layer).get("forward"), ReplacedForward) for layer in self._layers.values()):
            raise ValueError(
                "train: the model's linear layers must be its own: they are replaced already; leave the other context "
                "first"
            )
        undo.callback(self._undo.close)
        for name, layer in self._layers.items():
            replace(layer, "forward", ReplacedForward(layer.forward, partial(self._run, name)), undo)

    def attach(self, optimizer: torch.optim.Optimizer, step: int = 0) -> None:
        """Have an optimizer's steps make the training go on.

        Args:
            optimizer: of PyTorch, whose ``step`` needs no closure.
            step: how many steps there were before, where a training goes on from a checkpoint.
        """
        self._undo.close()
        self.step, self.stage = step, self.recipe.stage(step, self.steps)
        self._undo.callback(optimizer.register_step_pre_hook(self._before).remove)
        self._undo.callback(optimizer.register_step_post_hook(self._after).remove)

    def _run(self, name: str, inner: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.stage.rest == 1:
            return inner(*args, **kwargs)
        layer = self._layers[name]
        x, weight = given(args, kwargs), turned(layer, layer.weight)
        return self.recipe.multiply(x, weight, layer.bias, self._kept(name), self.stage.rest)

    def _kept(self, name: str) -> Tensor:
        """The mask of a layer, made anew where its weights are others than the last time."""
        layer = self._layers[name]
        with self._making:
            made_of = (layer.weight.data_ptr(), layer.weight._version, self.stage.n, self.stage.m)
            if name not in self._masks or self._masks[name][0] != made_of:
                with torch.no_grad():
                    self._masks[name] = made_of, self.stage.kept(turned(layer, layer.weight))
            return self._masks[name][1]

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if any(callable(value) for value in (*args[1:], *kwargs.values())):
            raise RuntimeError(
                "train: the optimizer's step must take no closure, which makes gradients after the weights were "
                "looked at; use SGD, AdamW or another one that needs none"
            )
        self._counted = self.kept
        if self.stage.rest == 1:
            return
        rates = {id(weight): float(group["lr"]) for group in optimizer.param_groups for weight in group["params"]}
        for name, layer in self._layers.items():
            if id(layer.weight) in rates and layer.weight.grad is not None:
                kept = self._counted[name]
                self.recipe.adjust(layer.weight, turned(layer, kept), rates[id(layer.weight)])

    def _after(self, *_: Any) -> None:
        self.step += 1
        self.stage = self.recipe.stage(self.step, self.steps)
        self._masks.clear()  # not every optimizer tells that it has changed the weights
        self.changed.append(sum(int((self._counted[name] != kept).sum()) for name, kept in self.kept.items()))


def straight_through(weight: Tensor, kept: Tensor, rest: float = 0.0) -> Tensor:
    """``W ∘ (E + D · (1 - E))``, whose gradient goes to all of W as if nothing had been multiplied.

    Args:
        weight: (out, in).
        kept: E, (out, in) bool.
        rest: D.
    """
    return _StraightThrough.apply(weight, kept, rest)  # type: ignore[no-any-return]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, kept: Tensor, rest: float) -> Tensor:
        return torch.where(kept, weight, weight * rest) if rest else weight.masked_fill(~kept, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient, None, None
