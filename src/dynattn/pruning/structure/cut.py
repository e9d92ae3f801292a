"""Removes elements for good: weights are sliced, blocks replaced by ones that compute nothing, empty layers taken out.

What is computed is what :func:`dynattn.pruning.structure.masked.masked` defines, up to rounding. A layer of which both
blocks are gone leaves the model if it is seen to give back what it is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dynattn.pruning.structure.elements import Element, Left, left
from dynattn.pruning.structure.find import MLP, Attention, Layer, Structure, find, is_transposed, size

_COUNTS = {  # attributes that modules keep of how many heads they have
    "heads": ("num_heads", "num_attention_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads",),
    "wide": ("all_head_size", "split_size"),
}


class NoAttention(nn.Module):
    """Stands in the place of an attention without heads: it gives zeros, or the bias of its output.

    Args:
        attention: what it replaces.
        bias: (width,), what is added at every token; None for nothing.
        width: how wide the output is; 0 where another module widens it.
    """

    def __init__(self, attention: nn.Module, bias: nn.Parameter | None, width: int) -> None:
        super().__init__()
        self.config: Any = getattr(attention, "config", None)
        self.layer_idx: int | None = getattr(attention, "layer_idx", None)
        self.width = width
        self.alone = inspect.signature(type(attention).forward).return_annotation is Tensor
        self.bias = bias

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the attention would be called; the sequence gets longer in the cache, which counts it by its layers."""
        cache = kwargs.get("past_key_values")
        if cache is not None and self.layer_idx is not None:
            batch, length = hidden_states.shape[:2]
            nothing = hidden_states.new_zeros(batch, 1, length, 1)
            cache.update(nothing, nothing, self.layer_idx)
        out = hidden_states.new_zeros(*hidden_states.shape[:-1], self.width)
        out = out if self.bias is None else out + self.bias
        return out if self.alone else (out, None)


@torch.no_grad()
def cut(model: nn.Module, elements: Iterable[Element]) -> tuple[Left, ...]:
    """Remove elements from a model, in place. It cannot be undone: load the model again for that.

    Args:
        model: a Transformers model, see :func:`dynattn.pruning.structure.find.find`.
        elements: what is removed.

    Returns:
        What is left of each layer that is still there.

    Raises:
        TypeError: it is not a module.
        ValueError: the model is not of a known form, or an element does not fit it.
    """
    structure = find(model)
    parts = left(structure, elements)
    for layer, part in zip(structure.layers, parts, strict=True):
        if not (part.attention and part.heads.all()):
            _cut_attention(layer, part)
        if layer.mlp is not None and part.neurons is not None and not (part.mlp and part.neurons.all()):
            _cut_mlp(layer.module, layer.mlp, part)
    return _without_empty_layers(structure, parts, getattr(model, "config", None))


def _cut_attention(layer: Layer, part: Left) -> None:
    attention, keeps_heads = layer.attention, part.attention and bool(part.heads.any())
    if not keeps_heads:
        _no_attention(layer, part.attention)
        return
    queries, keys = _wide(part.heads, attention.head_dim), _wide(part.kv_heads, attention.head_dim)
    rows: dict[nn.Module, list[Tensor]] = {}
    for of, index in ((attention.query, queries), (attention.key, keys), (attention.value, keys)):
        rows.setdefault(of.module, []).append(of.start + index)
    for module, chosen in rows.items():
        _keep_outputs(module, torch.cat(chosen))
    _keep_inputs(attention.output, queries)
    counts = {"heads": int(part.heads.sum()), "kv_heads": int(part.kv_heads.sum()), "wide": len(queries)}
    for what, names in _COUNTS.items():
        for name in names:
            if name in vars(attention.module):
                setattr(attention.module, name, counts[what])


def _wide(heads: Tensor, head_dim: int) -> Tensor:
    """The rows of heads that are left."""
    return (heads.nonzero() * head_dim + torch.arange(head_dim, device="cpu")).flatten()


def _no_attention(layer: Layer, bias: bool) -> None:
    """Replace an attention without heads; a block that is gone adds no bias either, and its norm goes with it."""
    attention: Attention = layer.attention
    output: Any = attention.output
    owned = any(module is output for module in attention.module.modules())
    kept = output.bias if bias and owned else None
    width = size(output)[1] if owned else 0
    _replace(layer.module, attention.module, NoAttention(attention.module, kept, width))
    if not owned:
        _keep_inputs(output, torch.arange(0, device="cpu"))
        if not bias:
            output.bias = None
    if not bias and attention.norm is not None:
        _replace(layer.module, attention.norm, nn.Identity())


def _cut_mlp(layer: nn.Module, mlp: MLP, part: Left) -> None:
    """Slice an MLP; one that is gone has no neurons, which costs nothing, and no bias behind them."""
    kept = part.neurons if part.mlp and part.neurons is not None else torch.zeros(0, dtype=torch.bool, device="cpu")
    index = kept.nonzero().flatten()
    for module in mlp.into:
        _keep_outputs(module, index)
    _keep_inputs(mlp.output, index)
    output: Any = mlp.output
    if is_transposed(output) and len(index) == 0:  # whose forward fails without inputs
        output = _linear(output)
        _replace(layer, mlp.output, output)
    if not part.mlp:
        output.bias = None
        if mlp.norm is not None:
            _replace(layer, mlp.norm, nn.Identity())


def _keep_outputs(module: Any, index: Tensor) -> None:
    """Leave some outputs of a dense module, with their biases."""
    _keep(module, index, 1 if is_transposed(module) else 0)
    if module.bias is not None:
        module.bias = _chosen(module.bias, index, 0)


def _keep_inputs(module: Any, index: Tensor) -> None:
    """Leave some inputs of a dense module."""
    _keep(module, index, 0 if is_transposed(module) else 1)


def _keep(module: Any, index: Tensor, axis: int) -> None:
    module.weight = _chosen(module.weight, index, axis)
    if is_transposed(module):
        module.nx, module.nf = module.weight.shape
    else:
        module.out_features, module.in_features = module.weight.shape


def _linear(module: Any) -> nn.Linear:
    """What a ``Conv1D`` computes, as a linear layer."""
    made = nn.Linear(1, 1)  # one without inputs would warn that it has nothing to initialise
    made.weight = nn.Parameter(module.weight.T.contiguous(), requires_grad=module.weight.requires_grad)
    made.bias = module.bias
    made.out_features, made.in_features = made.weight.shape
    return made


def _chosen(weight: nn.Parameter, index: Tensor, axis: int) -> nn.Parameter:
    return nn.Parameter(weight.index_select(axis, index.to(weight.device)), requires_grad=weight.requires_grad)


def _replace(layer: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another one."""
    for module in list(layer.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new.train(old.training))


def _without_empty_layers(structure: Structure, parts: tuple[Left, ...], config: Any) -> tuple[Left, ...]:
    empty = {
        number
        for number, (layer, part) in enumerate(zip(structure.layers, parts, strict=True))
        if not part.attention and (layer.mlp is not None and not part.mlp) and _gives_back(layer)
    }
    if not empty or len(empty) == len(parts):  # a model without any layer would not run
        return parts
    for number in sorted(empty, reverse=True):
        del structure.stack[number]
    for one in {id(one): one for one in (structure.config, config) if one is not None}.values():
        _shorten(one, empty, len(parts))
    for number, layer in enumerate(structure.stack):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number  # pyright: ignore[reportArgumentType]
    return tuple(part for number, part in enumerate(parts) if number not in empty)


def _shorten(config: Any, empty: set[int], layers: int) -> None:
    """Take layers out of what a config says of each."""
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == layers:
            setattr(config, name, [one for number, one in enumerate(value) if number not in empty])
    config.num_hidden_layers = layers - len(empty)


def _gives_back(layer: Layer) -> bool:
    """Whether a layer gives what it is given: seen on some states."""
    weight: Any = layer.attention.output.weight
    width = size(layer.attention.output)[1]
    given = torch.linspace(-3, 3, 3 * width, device=weight.device).view(1, 3, width).to(weight.dtype)
    needed = [
        name
        for name, parameter in inspect.signature(layer.module.forward).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ][1:]
    try:
        out = layer.module(given, **dict.fromkeys(needed))
    except (TypeError, ValueError, AttributeError, RuntimeError):  # a layer that cannot be asked stays
        return False
    out = out[0] if isinstance(out, tuple) else out
    return isinstance(out, Tensor) and torch.equal(out, given)
