"""Where linear layers stand in a model: the projections of attention and of the MLP, layer by layer.

q, k, v, o             attention: projections and output; ``qkv`` where one layer is all three, as in GPT-2
gate, up, down         an MLP with a gate:  y = W_down (act(W_gate x) ∘ W_up x)
in, out                an MLP without one:  y = W_out act(W_in x)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dynattn.pruning.structure.find import MLP, Layer, find, is_transposed

PARTS: dict[str, tuple[str, ...]] = {
    "qkv": ("q", "k", "v", "qkv"), "out": ("o",), "mlp": ("gate", "up", "down", "in", "out"),
}  # fmt: skip
"""The projections of each part of a layer."""

PROJECTIONS = tuple(name for names in PARTS.values() for name in names)
"""All names of projections."""

REMEDY = "take dynattn.sparsity.calibrate_thresholds(method, model, inputs) for this model, and apply what it gives"
"""What to do where a threshold is missing."""

_READ_TOGETHER = (("q", "k", "v"), ("gate", "up"))
_ACTIVATIONS = ("act_fn", "act", "activation_fn", "activation")


@dataclass(frozen=True, eq=False)
class Site:
    """What a method may know of a linear layer, besides its input.

    Attributes:
        layer: the number of the layer, from 0.
        projection: one of :data:`PROJECTIONS`.
        norms: (in,): the length of each input's weights, ``‖W[:, i]‖``; of layers that share a choice, of all their
            weights together.
        thresholds: (1,) or (in,), float32, what calibration found for this place; None without one.
    """

    layer: int
    projection: str
    norms: Tensor
    thresholds: Tensor | None = None

    @property
    def name(self) -> str:
        """``3.down``."""
        return named(self.layer, self.projection)

    def scores(self, x: Tensor) -> Tensor:
        """``|x_i| ‖W[:, i]‖``, in float32 at least, as norms are.

        Args:
            x: (tokens, in).
        """
        return x.abs() * self.norms.to(x.device)

    def threshold(self, method: str) -> Tensor:
        """The thresholds.

        Args:
            method: named in the error.

        Raises:
            ValueError: there are none, since the method was not calibrated for this place.
        """
        if self.thresholds is None:
            raise ValueError(f"{method}: there must be a threshold for {self.name}: it has none; {REMEDY}")
        return self.thresholds


class Chooser(Protocol):
    """What chooses the inputs of a linear layer: :class:`dynattn.sparsity.ActivationSparsity`."""

    @property
    def name(self) -> str: ...

    shares_choice: ClassVar[bool]
    chooses_neurons: ClassVar[bool]

    @property
    def needs_thresholds(self) -> bool: ...

    @property
    def keeps_everything(self) -> bool: ...

    def keep(self, x: Tensor, site: Site) -> Tensor: ...

    def fused(self, site: Site) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None: ...


class Gated(NamedTuple):
    """An MLP with a gate, of the form ``down(act(gate(x)) * up(x))``.

    Attributes:
        mlp: the module that owns the four.
        gate: the projection whose activation multiplies the other's output.
        up: the other one.
        act: the activation; None where the module names none.
    """

    mlp: nn.Module
    gate: nn.Module
    up: nn.Module
    act: Callable[[Tensor], Tensor] | None


class Place(NamedTuple):
    """A linear layer in its place.

    Attributes:
        layer: the number of the layer, from 0.
        projection: one of :data:`PROJECTIONS`.
        module: the linear layer.
        gated: of ``down``: the MLP that it belongs to.
    """

    layer: int
    projection: str
    module: Any
    gated: Gated | None = None

    @property
    def name(self) -> str:
        """As :attr:`Site.name`."""
        return named(self.layer, self.projection)

    @property
    def read(self) -> tuple[int, str]:
        """The same for layers that read the same input."""
        together = next((names for names in _READ_TOGETHER if self.projection in names), (self.projection,))
        return self.layer, together[0]


def named(layer: int, projection: str) -> str:
    """``3.down``."""
    return f"{layer}.{projection}"


def given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The one input of a module, however its forward is called."""
    (x,) = (*args, *kwargs.values())
    return x


def rows(x: Tensor) -> Tensor:
    """(tokens, in)."""
    return x.reshape(-1, x.shape[-1])


def unpadded(x: Tensor, mask: Tensor | None) -> Tensor:
    """(tokens, in): the rows that an attention mask (batch, tokens) does not call padding; all where it is not of x."""
    if mask is not None and mask.dim() == 2 and x.dim() == 3 and mask.shape == x.shape[:2]:
        return x[mask.to(x.device) != 0]
    return rows(x)


def norms(module: Any) -> Tensor:
    """``‖W[:, i]‖`` of each input of a linear layer, (in,), in float32 at least."""
    weight = module.weight.detach()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.linalg.vector_norm(weight, dim=1 if is_transposed(module) else 0, dtype=dtype)


def places(model: nn.Module, wanted: Callable[[int, str], bool] = lambda layer, projection: True) -> tuple[Place, ...]:
    """The linear layers inside a model's layers.

    Args:
        model: a Transformers encoder, decoder or vision encoder, with or without a head on top.
        wanted: which layers and projections are asked for.

    Returns:
        Those that are wanted, in the order in which they run.

    Raises:
        TypeError: it is not a module.
        ValueError: the model's layers cannot be named, or an MLP that is asked for is not made of plain linear layers.
    """
    found = find(model).layers
    return tuple(
        place
        for number, layer in enumerate(found)
        for place in _of_layer(number, layer, any(wanted(number, name) for name in PARTS["mlp"]))
        if wanted(place.layer, place.projection)
    )


def _of_layer(number: int, layer: Layer, with_mlp: bool) -> Iterator[Place]:
    attention = layer.attention
    query, key, value = attention.query.module, attention.key.module, attention.value.module
    if query is key:
        yield Place(number, "qkv", query)
    else:
        yield from (Place(number, name, module) for name, module in (("q", query), ("k", key), ("v", value)))
    yield Place(number, "o", attention.output)
    if not with_mlp:
        return
    if layer.mlp is None:
        raise ValueError(
            f"sparsity: the MLP must be two or three plain linear layers: that of layer {number}, a "
            f"{type(layer.module).__name__}, is not; leave MLPs out, as Sparsity(qkv=method, out=method) does"
        )
    if len(layer.mlp.into) == 1:
        yield Place(number, "in", layer.mlp.into[0])
        yield Place(number, "out", layer.mlp.output)
    else:
        yield from _of_gated(number, layer.module, layer.mlp)


def _of_gated(number: int, layer: nn.Module, mlp: MLP) -> Iterator[Place]:
    called = {id(module): name.rpartition(".")[2] for name, module in layer.named_modules()}
    gates = [module for module in mlp.into if "gate" in called[id(module)]]
    ups = [module for module in mlp.into if "up" in called[id(module)] and module not in gates]
    if len(gates) != 1 or len(ups) != 1:
        raise ValueError(
            "sparsity: of the two layers that an MLP begins with, one must be called gate and the other up: those of "
            f"layer {number} are {', '.join(called[id(module)] for module in mlp.into)}; leave MLPs out, as "
            "Sparsity(qkv=method, out=method) does"
        )
    owner = next(module for module in layer.modules() if any(child is mlp.output for child in module.children()))
    act: Any = next((found for name in _ACTIVATIONS if callable(found := getattr(owner, name, None))), None)
    yield Place(number, "gate", gates[0])
    yield Place(number, "up", ups[0])
    yield Place(number, "down", mlp.output, Gated(owner, gates[0], ups[0], act))
