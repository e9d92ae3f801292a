"""The engine that has a model's linear layers leave inputs out while a context is active.

The forwards of the linear layers are replaced, by :mod:`dynattn.pruning.replaced`. Each asks its method which entries
of its input to keep, and multiplies them alone, by :mod:`dynattn.ops.linear`; for that its weight is stored by input.
Where a method chooses the neurons of an MLP with a gate, the forward of the MLP is replaced too: the gate is computed
whole, the other projection only where the gate asks, and the output from these neurons.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from dynattn.kernels.cpu.linear_calls import MAX_TOKENS
from dynattn.ops.linear import linear_outputs, linear_rows
from dynattn.ops.linear_again import has_kernel
from dynattn.pruning.replaced import ReplacedForward, attaching, replace
from dynattn.pruning.structure.find import is_transposed, size
from dynattn.sparsity.activations.layout import input_major
from dynattn.sparsity.activations.observe import observed, show
from dynattn.sparsity.linears import turned
from dynattn.sparsity.sites import REMEDY, Chooser, Gated, Place, Site, given, norms, places, rows


class Plan(Protocol):
    """What chooses where: :class:`dynattn.sparsity.ActivationPlan`."""

    def at(self, layer: int, projection: str) -> Chooser | None: ...


class Taken(NamedTuple):
    """A linear layer and what chooses its inputs."""

    place: Place
    chooser: Chooser


def taking_part(model: nn.Module, plan: Plan) -> list[Taken]:
    """The linear layers for which a plan has a method.

    Args:
        model: a Transformers model.
        plan: the plan.

    Raises:
        ValueError: there is none, or as :func:`dynattn.sparsity.sites.places`.
    """
    found = places(model, lambda layer, projection: plan.at(layer, projection) is not None)
    if not found:
        raise ValueError(
            "sparsity: a method must be set for some linear layer of the model: none is; look at layers and skip"
        )
    return [
        Taken(place, chooser)
        for place in found
        if (chooser := plan.at(place.layer, place.projection)) is not None
    ]  # fmt: skip


@contextmanager
def sparse(model: nn.Module, plan: Plan, thresholds: Mapping[str, Sequence[float]]) -> Iterator[tuple[Site, ...]]:
    """While active, linear layers leave out what a plan's methods leave out.

    Args:
        model: a Transformers model.
        plan: which method chooses where.
        thresholds: what calibration found, by :attr:`Site.name`.

    Yields:
        The sites.

    Raises:
        TypeError: it is not a module.
        ValueError: the model's layers are not of a kind that can be handled, or their forwards are replaced already.
    """
    taken = [one for one in taking_part(model, plan) if not one.chooser.keeps_everything]
    session = _Session()
    with ExitStack() as undo:
        undo.callback(session.close)
        with attaching:
            sites = session.attach(taken, thresholds, undo)
        yield sites


class _Session:
    """The replacements that one context puts into a model."""

    def __init__(self) -> None:
        self.open = True

    def close(self) -> None:
        """From now on, a replaced forward that someone still holds calls the module's own."""
        self.open = False

    def attach(
        self, taken: Sequence[Taken], thresholds: Mapping[str, Sequence[float]], undo: ExitStack
    ) -> tuple[Site, ...]:
        """Replace the forwards, and have ``undo`` put them back."""
        _refuse_replaced(taken)
        sites = []
        for together in _sharing(taken):
            own = [norms(place.module) for place, _ in together]
            of_these = own[0] if len(own) == 1 else torch.linalg.vector_norm(torch.stack(own), dim=0)
            choice: _Choice | None = None
            for (place, chooser), its in zip(together, own, strict=True):
                limits = _limits(place, thresholds.get(place.name)) if chooser.needs_thresholds else None
                site = Site(place.layer, place.projection, of_these, limits)
                choice = choice or _Choice(chooser, site, len(together))
                self._attach(place, chooser, site, choice, its, undo)
                sites.append(site)
        return tuple(sites)

    def _attach(
        self, place: Place, chooser: Chooser, site: Site, choice: _Choice, its: Tensor, undo: ExitStack
    ) -> None:  # fmt: skip
        module = place.module
        if not is_transposed(module):
            input_major(module.weight, undo)
        if chooser.chooses_neurons and place.gated is not None:
            neurons = _Neurons(self, place.gated, module, chooser, site)
            for owner, run in (
                (place.gated.mlp, neurons.run), (place.gated.up, neurons.run_up), (module, neurons.run_down),
            ):  # fmt: skip
                replace(owner, "forward", ReplacedForward(owner.forward, run), undo)
        else:
            inputs = _Inputs(self, module, site, choice, its)
            replace(module, "forward", ReplacedForward(module.forward, inputs.run), undo)


class _Last(NamedTuple):
    """A choice for which somebody may still ask.

    Attributes:
        x: the input that it was made for.
        before: what tells whether that was changed meanwhile: its version, or a copy in inference mode, where tensors
            have none.
        keep: the choice.
        left: how many layers are still to read it.
    """

    x: weakref.ref[Tensor]
    before: int | Tensor
    keep: Tensor
    left: int

    def is_of(self, x: Tensor) -> bool:
        """Whether it is the choice for an input."""
        if self.x() is not x:
            return False
        return torch.equal(self.before, x) if isinstance(self.before, Tensor) else self.before == x._version


class _Choice:
    """The choice for layers that read one input: made once for each input that they read one after another."""

    def __init__(self, chooser: Chooser, site: Site, readers: int) -> None:
        self.chooser, self.site, self.readers = chooser, site, readers
        self.thread = threading.local()  # .last of the choices that this thread made

    def of(self, x: Tensor) -> tuple[Tensor, bool]:
        """(tokens, in) bool, and whether it was made now."""
        last: _Last | None = getattr(self.thread, "last", None)
        if last is not None and last.is_of(x):
            self.thread.last = last._replace(left=last.left - 1) if last.left > 1 else None
            return last.keep, False
        keep = _kept(self.chooser, x, self.site)
        if self.readers > 1:
            before = x.clone() if x.is_inference() else x._version
            self.thread.last = _Last(weakref.ref(x), before, keep, self.readers - 1)
        return keep, True


class _Inputs:
    """A linear layer that reads the inputs that are kept."""

    def __init__(self, session: _Session, module: Any, site: Site, choice: _Choice, its: Tensor) -> None:
        self.session, self.module, self.site, self.choice = session, module, site, choice
        self.norms = its  # those of the layer alone, where the site's are of all that share the choice
        self.fused = choice.chooser.fused(site) if its.is_cpu else None
        self.transposed = is_transposed(module)

    def run(self, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The forward of the layer."""
        if not self.session.open:
            return forward(*args, **kwargs)
        x = given(args, kwargs)
        if self.fused is not None and self._chooses_inside(x):
            weight = self.module.weight
            return self.fused(x, weight if self.transposed else weight.t(), self.module.bias)
        keep, made = self.choice.of(x)
        show(self.module, self.site, keep, rows(x), self.norms, outputs=False, made=made)
        return _by_rows(self.module, x, keep)

    def _chooses_inside(self, x: Tensor) -> bool:
        """Whether a kernel is to choose as it multiplies. Where many tokens go to several layers, the choice is made
        once for all of these. It is made apart too where somebody looks at it, and where the product is PyTorch's own,
        for a derivative or in another dtype."""
        tokens = x.numel() // max(1, x.shape[-1])
        return (
            not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and has_kernel(tokens, x.dtype)
            and (tokens <= MAX_TOKENS or self.choice.readers == 1)
            and x.is_cpu
            and x.dim() > 1
            and not observed()
        )


class _Neurons:
    """An MLP with a gate that computes the neurons that the gate's activations ask for."""

    def __init__(self, session: _Session, gated: Gated, down: Any, chooser: Chooser, site: Site) -> None:
        self.session, self.gated, self.down = session, gated, down
        self.chooser, self.site = chooser, site
        self.of_up = Site(site.layer, "up", norms(gated.up))
        self.thread = threading.local()  # .keep of the MLP's forward that this thread runs
        self.act = activation(gated, down)

    def run(self, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The forward of the MLP."""
        if not self.session.open:
            return forward(*args, **kwargs)
        x = given(args, kwargs)
        hidden = self.act(self.gated.gate(x))
        self.thread.keep = _kept(self.chooser, hidden, self.site)
        try:
            return self.down(hidden * self.gated.up(x))
        finally:
            self.thread.keep = None

    def run_up(self, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The forward of the projection beside the gate."""
        keep = getattr(self.thread, "keep", None)
        if keep is None:  # not called by the MLP's forward
            return forward(*args, **kwargs)
        x, up = given(args, kwargs), cast(Any, self.gated.up)
        show(up, self.of_up, keep, rows(x), None, outputs=True, made=False)
        out = linear_outputs(rows(x), turned(up, up.weight), up.bias, keep=keep)
        return out.view(*x.shape[:-1], out.shape[-1])

    def run_down(self, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The forward of the output projection."""
        keep = getattr(self.thread, "keep", None)
        if keep is None:
            return forward(*args, **kwargs)
        x = given(args, kwargs)
        show(self.down, self.site, keep, rows(x), None, outputs=False, made=True)
        return _by_rows(self.down, x, keep)


def activation(gated: Gated, down: Any) -> Callable[[Tensor], Tensor]:
    """The activation of an MLP with a gate, after a look at what the MLP computes.

    Args:
        gated: its parts.
        down: its output projection.

    Raises:
        ValueError: it computes something else than ``down(act(gate(x)) * up(x))``.
    """
    own = set(map(id, gated.mlp.children()))
    if gated.act is not None and {id(gated.gate), id(gated.up), id(down)} <= own:
        weight: Any = gated.gate.weight
        wide, _ = size(gated.gate)
        with torch.no_grad():
            x = torch.linspace(-1, 1, wide, dtype=torch.float64, device=weight.device).to(weight.dtype).unsqueeze(0)
            expected = down(gated.act(gated.gate(x)) * gated.up(x))
            if torch.allclose(gated.mlp(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
                return gated.act
    raise ValueError(
        f"sparsity: an MLP with a gate must compute down(act(gate(x)) * up(x)): {type(gated.mlp).__name__} computes "
        "something else, or keeps these apart; choose inputs of its layers instead, as WINA and TEAL do"
    )


def _kept(chooser: Chooser, x: Tensor, site: Site) -> Tensor:
    flat = rows(x.detach())
    with torch.no_grad():
        keep = chooser.keep(flat, site)
    if keep.shape != flat.shape or keep.dtype != torch.bool:
        raise ValueError(
            f"{chooser.name}: keep must return bool of shape {tuple(flat.shape)}: got {keep.dtype}, "
            f"{tuple(keep.shape)}; return one entry for each input of each token"
        )
    return keep


def _sharing(taken: Sequence[Taken]) -> list[list[Taken]]:
    """Layers that read one input by one method which shares its choice, together; others alone."""
    groups: dict[Any, list[Taken]] = {}
    for number, one in enumerate(taken):
        key: Any = (one.place.read, one.chooser.name) if one.chooser.shares_choice else number
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def _limits(place: Place, found: Sequence[float] | None) -> Tensor:
    weight = place.module.weight
    if found is None:
        raise ValueError(f"sparsity: there must be a threshold for {place.name}: there is none; {REMEDY}")
    inputs, _ = size(place.module)
    if len(found) not in (1, inputs):
        raise ValueError(
            f"sparsity: thresholds of {place.name} must be 1 or {inputs}: got {len(found)}, of another model; {REMEDY}"
        )
    return torch.tensor(found, dtype=torch.float32, device=weight.device)


def _refuse_replaced(taken: Sequence[Taken]) -> None:
    modules = {id(place.module): place.module for place, _ in taken}
    for place, chooser in taken:
        if chooser.chooses_neurons and place.gated is not None:
            modules |= {id(one): one for one in (place.gated.mlp, place.gated.up)}
    if any("forward" in vars(module) for module in modules.values()):
        raise ValueError(
            "sparsity: linear layers must have their class's own forward: some are replaced already, by another "
            "context, here or in another thread, or by hooks of another library: leave that context first; methods do "
            "not nest"
        )


def _by_rows(module: Any, x: Tensor, keep: Tensor) -> Tensor:
    out = linear_rows(rows(x), turned(module, module.weight).t(), module.bias, keep=keep)
    return out.view(*x.shape[:-1], out.shape[-1])
