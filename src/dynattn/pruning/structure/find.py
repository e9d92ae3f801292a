"""Finds the layers of a model, and in each the projections of its attention and of its MLP.

Parts are known by what they are and not by the model's type: a layer's attention is the module with projections of
query, key and value, its MLP the one or two linear layers from the model's width to the neurons and the one back. What
cannot be cut without changing the rest is refused: norms over all heads at once, biases by head, experts, adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

_PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))
_FUSED = "c_attn"  # query, key and value in one, as in GPT-2
_OUTPUTS = ("o_proj", "out_proj", "out_lin", "dense", "c_proj")
_HEAD_DIMS = ("head_dim", "attention_head_size")
_NORMS_AFTER = ("sa_layer_norm", "output_layer_norm")  # of DistilBERT's layers, behind the sum: attention's, the MLP's
_NORMS_BY_CONFIG = ("self_attn_layer_norm", "final_layer_norm")  # of OPT's, where config.do_layer_norm_before is False


class Rows(NamedTuple):
    """Outputs of a linear layer.

    Attributes:
        module: the layer.
        start: the first output; a fused layer has those of query, key and value one behind the other.
    """

    module: nn.Module
    start: int


class Attention(NamedTuple):
    """The attention block of a layer.

    Attributes:
        module: calls the attention function.
        query: the projection; likewise the next two.
        key: see ``query``.
        value: see ``query``.
        output: the projection of the heads' outputs.
        norm: the norm behind the sum of this block and its input, where there is one that is known.
        heads: how many query heads.
        kv_heads: how many key heads.
        head_dim: the width of a head.
    """

    module: nn.Module
    query: Rows
    key: Rows
    value: Rows
    output: nn.Module
    norm: nn.Module | None
    heads: int
    kv_heads: int
    head_dim: int


class MLP(NamedTuple):
    """The MLP block of a layer.

    Attributes:
        into: the linear layers that give the neurons: one, or gate and up.
        output: the one that reads them.
        norm: as :class:`Attention` has it.
        neurons: how many.
    """

    into: tuple[nn.Module, ...]
    output: nn.Module
    norm: nn.Module | None
    neurons: int


class Layer(NamedTuple):
    """One layer; ``mlp`` is None where it is not made of plain linear layers."""

    module: nn.Module
    attention: Attention
    mlp: MLP | None


class Structure(NamedTuple):
    """A model's layers.

    Attributes:
        layers: in order.
        stack: the list that the model runs through.
        config: the model's configuration.
    """

    layers: tuple[Layer, ...]
    stack: nn.ModuleList
    config: Any


def find(model: nn.Module) -> Structure:
    """The layers of a model.

    Args:
        model: a Transformers encoder, decoder or vision encoder, with or without a head on top.

    Returns:
        Its structure.

    Raises:
        TypeError: it is not a module.
        ValueError: it has no layers of a form that is known, or more than one stack of them.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"structure: model must be a Transformers model: got {type(model).__name__}; load one first")
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and _is_stack(module)]
    if len(stacks) != 1:
        raise ValueError(
            f"structure: the model must have one stack of layers, each with one attention of plain linear projections "
            f"of query, key and value: {type(model).__name__} has {len(stacks)}; merge adapters, load it unquantised, "
            "or pass one of its encoders or decoders"
        )
    config: Any = getattr(_cores(stacks[0][0])[0], "config", None) or getattr(model, "config", None)
    if getattr(config, "num_hidden_layers", None) != len(stacks[0]):
        raise ValueError(
            f"structure: every layer must have weights of its own: {type(model).__name__} has {len(stacks[0])} modules "
            f"for {getattr(config, 'num_hidden_layers', None)} layers; take a model that shares none"
        )
    return Structure(tuple(_layer(module, config) for module in stacks[0]), stacks[0], config)


def mlp_outputs(model: nn.Module, owner: str) -> list[nn.Module]:
    """The output projection of every layer's MLP.

    Args:
        model: a Transformers model.
        owner: who needs them, for the error.

    Raises:
        TypeError, ValueError: as :func:`find`; or a layer has no MLP of plain linear layers.
    """
    outputs: list[nn.Module] = []
    for number, layer in enumerate(find(model).layers):
        if layer.mlp is None:
            raise ValueError(
                f"{owner}: every layer must have an MLP of plain linear layers: layer {number} of "
                f"{type(model).__name__} has none; take another model"
            )
        outputs.append(layer.mlp.output)
    return outputs


def is_dense(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer, or GPT-2's ``Conv1D``, whose weight is transposed."""
    return type(module) is nn.Linear or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is a ``Conv1D`` of Transformers, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def size(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a dense module."""
    first, second = module.weight.shape
    return (first, second) if is_transposed(module) else (second, first)


def _is_stack(modules: nn.ModuleList) -> bool:
    """Layers with one attention each; of lists inside lists only the innermost counts."""
    if len(modules) == 0 or any(len(_cores(layer)) != 1 for layer in modules):
        return False
    return not any(isinstance(one, nn.ModuleList) and _is_stack(one) for layer in modules for one in layer.modules())


def _cores(layer: nn.Module) -> list[nn.Module]:
    """Modules with projections of query, key and value."""
    return [module for module in layer.modules() if _projections(module) is not None]


def _projections(core: nn.Module) -> tuple[Rows, Rows, Rows] | None:
    for names in _PROJECTIONS:
        found = [getattr(core, name, None) for name in names]
        if all(isinstance(one, nn.Module) and is_dense(one) for one in found):
            query, key, value = (Rows(one, 0) for one in found if isinstance(one, nn.Module))
            return query, key, value
    fused = getattr(core, _FUSED, None)
    if isinstance(fused, nn.Module) and is_dense(fused):
        wide = getattr(core, "split_size", None)
        if isinstance(wide, int) and size(fused)[1] == 3 * wide:
            return Rows(fused, 0), Rows(fused, wide), Rows(fused, 2 * wide)
    return None


def _layer(module: nn.Module, config: Any) -> Layer:
    attention = _attention(module, config)
    return Layer(module, attention, _mlp(module, attention, config))


def _attention(layer: nn.Module, config: Any) -> Attention:
    (core,) = _cores(layer)
    projections = _projections(core)
    output, owner = _output(layer, core)
    head_dim = next((wide for name in _HEAD_DIMS if isinstance(wide := getattr(core, name, None), int)), None)
    if projections is None or output is None or head_dim is None:
        raise ValueError(
            f"structure: an attention must have a plain linear output projection and a head_dim: "
            f"{type(core).__name__} has not; take a model whose attention is written with nn.Linear"
        )
    query, key, value = projections
    fused = query.module is key.module
    inside, _ = size(output)
    rows = [inside] * 3 if fused else [size(one.module)[1] for one in projections]
    if rows[0] != inside or rows[1] != rows[2] or any(row % head_dim for row in rows) or rows[0] % rows[1]:
        raise ValueError(
            f"structure: heads must be slices of the projections: {type(core).__name__} has {rows} outputs for query, "
            f"key and value and {inside} inputs of the output, with a head_dim of {head_dim}; take another model"
        )
    _only_per_head(core, {query.module, key.module, value.module, output}, head_dim)
    norm = _norm(layer, owner, config, 0)
    return Attention(
        core, query, key, value, output, norm, rows[0] // head_dim, rows[1] // head_dim, head_dim
    )  # fmt: skip


def _output(layer: nn.Module, core: nn.Module) -> tuple[nn.Module | None, nn.Module]:
    """The output projection and the module that owns it: the attention itself, or as in BERT a sibling."""
    for name in _OUTPUTS:
        found = getattr(core, name, None)
        if isinstance(found, nn.Module) and is_dense(found):
            return found, core
    parent = next((one for one in layer.modules() if any(child is core for child in one.children())), layer)
    owner = getattr(parent, "output", None)
    found = getattr(owner, "dense", None)
    if isinstance(owner, nn.Module) and isinstance(found, nn.Module) and is_dense(found):
        return found, owner
    return None, core


def _only_per_head(core: nn.Module, dense: set[nn.Module], head_dim: int) -> None:
    """Refuse an attention that has weights for all heads together, which a slice of heads would leave wrong."""
    known = {id(weight) for module in dense for weight in module.parameters()}
    for name, weight in core.named_parameters():
        of_one_head = "." in name and tuple(weight.shape) == (
            head_dim,
        )  # a norm's: sinks may be as many as heads are wide
        if id(weight) not in known and not of_one_head:
            raise ValueError(
                f"structure: weights besides the projections must be those of one head: {type(core).__name__} has "
                f"{name} of shape {tuple(weight.shape)}; take a model without it"
            )


def _mlp(layer: nn.Module, attention: Attention, config: Any) -> MLP | None:
    own = {id(module) for module in attention.module.modules()} | {id(attention.output)}
    dense = [module for module in layer.modules() if is_dense(module) and id(module) not in own]
    if not 2 <= len(dense) <= 3:
        return None
    (*into, output), width = dense, size(attention.output)[1]
    neurons = size(output)[0]
    if size(output)[1] != width or any(size(module) != (width, neurons) for module in into):
        return None
    known = {id(weight) for module in dense for weight in module.parameters()}
    others = [weight for _, weight in _others(layer, own) if id(weight) not in known]
    if any(weight.dim() > 1 or (weight.numel() == neurons != width) for weight in others):
        return None
    owner = next(one for one in layer.modules() if any(child is output for child in one.children()))
    return MLP(tuple(into), output, _norm(layer, owner, config, 1), neurons)


def _others(layer: nn.Module, own: set[int]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a layer's modules that are not of its attention."""
    for module in layer.modules():
        if id(module) not in own:
            yield from module.named_parameters(recurse=False)


def _norm(layer: nn.Module, owner: nn.Module, config: Any, block: int) -> nn.Module | None:
    """The norm behind the sum of a block and its input, in families whose layers end a block with one."""
    found = getattr(owner, "LayerNorm", None) or getattr(layer, _NORMS_AFTER[block], None)
    if found is None and getattr(config, "do_layer_norm_before", True) is False:
        found = getattr(layer, _NORMS_BY_CONFIG[block], None)
    return found if isinstance(found, nn.Module) else None
