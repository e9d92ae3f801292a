"""Choices by loops, and models whose linear layers are masked by hooks: what the engine is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from dynattn.sparsity import Site

PATHS: dict[str, dict[str, str]] = {
    "llama": {
        **{name: f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkvo"},
        **{name: f"model.layers.{{}}.mlp.{name}_proj" for name in ("gate", "up", "down")},
    },
    "gpt2": {
        "qkv": "transformer.h.{}.attn.c_attn", "o": "transformer.h.{}.attn.c_proj",
        "in": "transformer.h.{}.mlp.c_fc", "out": "transformer.h.{}.mlp.c_proj",
    },
    "bert": {
        "q": "encoder.layer.{}.attention.self.query", "k": "encoder.layer.{}.attention.self.key",
        "v": "encoder.layer.{}.attention.self.value", "o": "encoder.layer.{}.attention.output.dense",
        "in": "encoder.layer.{}.intermediate.dense", "out": "encoder.layer.{}.output.dense",
    },
    "vit": {
        **{name: f"layers.{{}}.attention.{name}_proj" for name in "qkvo"},
        "in": "layers.{}.mlp.fc1", "out": "layers.{}.mlp.fc2",
    },
}  # fmt: skip
"""Where the linear layers of the tiny models stand, written by hand."""


def groups(scores: Sequence[float], n: int, m: int, stride: int = 1) -> set[int]:
    """The N largest of each group of M, the lower index first where they tie."""
    found: dict[tuple[int, int], list[int]] = {}
    for index in range(len(scores)):
        found.setdefault((index // (m * stride), index % stride), []).append(index)
    return {one for members in found.values() for one in largest([(scores[i], i) for i in members], n)}


def largest(entries: Sequence[tuple[float, int]], count: int) -> set[int]:
    """The indices of the largest scores."""
    return {index for _, index in sorted(entries, key=lambda entry: (-entry[0], entry[1]))[:count]}


def rows(x: Tensor, choose: Callable[[list[float]], set[int]]) -> Tensor:
    """A mask of what a rule chooses of each row."""
    keep = torch.zeros(x.shape, dtype=torch.bool)
    for number, row in enumerate(x.tolist()):
        keep[number, sorted(choose(row))] = True
    return keep


def columns(module: Any) -> Tensor:
    """(out, in), however the layer stores its weight."""
    return module.weight.detach().T if type(module).__name__ == "Conv1D" else module.weight.detach()


def site(weight: Tensor, thresholds: Sequence[float] | None = None) -> Site:
    """A site of a layer with this weight, (out, in)."""
    limits = None if thresholds is None else torch.tensor(thresholds)
    return Site(0, "q", weight.float().norm(dim=0), limits)


@contextmanager
def masked(model: Any, kind: str, rule: Callable[[int, str, Any, Tensor], Tensor | None]) -> Iterator[None]:
    """While active, inputs of linear layers are 0 where a rule says so.

    Args:
        model: a tiny model.
        kind: its kind.
        rule: gives the mask from layer, projection, module and (tokens, in); None leaves the layer dense.
    """
    layers = model.config.num_hidden_layers

    def hook(layer: int, projection: str) -> Callable[..., Any]:
        def run(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            flat = args[0].reshape(-1, args[0].shape[-1])
            keep = rule(layer, projection, module, flat)
            return None if keep is None else (flat.where(keep, 0).view(args[0].shape),)

        return run

    with ExitStack() as undo:
        for layer in range(layers):
            for projection, path in PATHS[kind].items():
                module = model.get_submodule(path.format(layer))
                undo.callback(module.register_forward_pre_hook(hook(layer, projection)).remove)
        yield
