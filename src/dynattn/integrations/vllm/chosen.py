"""Which method each layer attends by."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from dynattn.integrations.transformers.tuned import Tuned
from dynattn.methods import Method, PerLayer, parse

VARIABLE = "DYNATTN_VLLM"
"""The environment variable that names a method or the path of a tuned file."""

_DENSE = parse("dense")


@dataclass(frozen=True)
class Chosen:
    """The methods of the layers.

    Attributes:
        every: the method of all layers; None where a tuned file names one for each.
        by_module: methods by the names of attention modules, as Transformers has them.
        phase: ``prefill``, ``decode`` or ``both``.
        other: the method of all layers in the other phase.
    """

    every: Method | None
    by_module: Mapping[str, Method]
    phase: str = "both"
    other: Method = _DENSE

    @property
    def keeps_everything(self) -> bool:
        """Whether every layer is dense in both phases."""
        used = [*self.by_module.values(), *([] if self.every is None else [self.every])]
        return all(method.keeps_everything for method in (*used, self.other))

    def method(self, layer: str, decoding: bool) -> Method:
        """What a layer keeps.

        Args:
            layer: the layer's name in vLLM, which begins with that of the module: ``model.layers.0.self_attn.attn``.
            decoding: whether a request has a single query and more keys.

        Raises:
            ValueError: the tuned file does not name the layer.
        """
        if self.phase not in ("both", "decode" if decoding else "prefill"):
            return self.other
        if self.every is not None:
            return self.every
        for module, method in self.by_module.items():
            if f"{layer}.".startswith(f"{module}."):
                return method
        raise ValueError(
            f"dynattn: the tuned file must name every attention layer: {layer} is none of {list(self.by_module)}; use "
            f"the file of this model, or set {VARIABLE} to a method's name"
        )


@cache
def read(asked: str) -> Chosen:
    """What ``DYNATTN_VLLM`` says.

    Args:
        asked: the name of a method, or the path of a tuned file.

    Raises:
        ValueError: there is no such method or file, the file is damaged, or asks for what vLLM cannot do.

    Warns:
        The file has linear layers leave something out; those of vLLM stay dense.
    """
    if not asked.endswith(".json"):
        method = parse(asked)
        if isinstance(method, PerLayer):
            raise ValueError(f"dynattn: {VARIABLE} must not be a PerLayer method: got {asked!r}; name a tuned file")
        return Chosen(method, {})
    told = Tuned.read(asked)
    for name, value in (("pruning", told.pruning), ("cache", told.cache)):
        if value is not None:
            raise ValueError(
                f"dynattn: {asked} must not name a {name} for vLLM, which has a cache of its own that keeps every "
                f"token: got {value!r}; tune without it"
            )
    if told.linears:
        warnings.warn(
            f"dynattn: {asked} has linear layers leave something out: those of vLLM stay dense, so that less is lost "
            "and less is gained than was measured",
            stacklevel=2,
        )
    methods = {module: parse(name) for module, name in told.methods.items()}
    return Chosen(None, methods, told.phase, parse(told.decoding or "dense"))
