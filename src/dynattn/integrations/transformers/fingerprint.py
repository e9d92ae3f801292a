"""A fingerprint that tells a model from all others, its fine-tuned siblings too. It reads only a few thousand numbers.

    two numbers of each parameter, at places that its order among the parameters fixes

Fine-tuning changes all parameters, or all parameters of one part, and every part has its numbers here. A cast to
another dtype rounds the numbers, so numbers of two dtypes are compared up to a rounding of the coarser one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SAMPLES = 2  # so many numbers of each parameter are read
_STEP = 2654435761  # Knuth's multiplicative hashing: places of consecutive numbers lie far apart
_SHAPE = re.compile(r"size|layers|heads|dim|width|d_model|d_ff|d_kv|n_embd|n_head|n_layer|theta|window|position")
_TINY = 2.0**-24  # float16 rounds below its smallest number to 0


@dataclass(frozen=True)
class Fingerprint:
    """A model as a file remembers it.

    Attributes:
        model_type: the type that its config names, as in ``llama``.
        kind: the name of its class, as in ``LlamaForCausalLM``.
        layers: how many attention modules take part.
        config: the numbers of its config, and of configs inside it, that say how large things are.
        shapes: a digest of the names and shapes of its parameters.
        dtype: the dtype of its first floating-point parameter.
        weights: base64 of float32 numbers, two of each parameter.
    """

    model_type: str
    kind: str
    layers: int
    config: Mapping[str, float]
    shapes: str
    dtype: str
    weights: str

    @classmethod
    def of(cls, model: Any, layers: int) -> Fingerprint:
        """The fingerprint of a model.

        Args:
            model: a Transformers model. Numbers of parameters without data (on ``meta``) are NaN.
            layers: attention modules of it that take part.
        """
        return cls(
            model_type=str(model.config.model_type),
            kind=type(model).__name__,
            layers=layers,
            config=dict(sorted(_sizes(model.config.to_dict()))),
            shapes=_shapes(model),
            dtype=_dtype(model),
            weights=base64.b64encode(_numbers(model).tobytes()).decode("ascii"),
        )

    def __post_init__(self) -> None:
        try:
            size = len(base64.b64decode(self.weights, validate=True))
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"Fingerprint: weights must be base64 of float32 numbers: {error}") from error
        if size % 4:
            raise ValueError(f"Fingerprint: weights must be base64 of float32 numbers: got {size} bytes")
        if not is_dtype(self.dtype):
            raise ValueError(f"Fingerprint: dtype must be a floating-point one of PyTorch's: got {self.dtype!r}")

    def difference(self, found: Fingerprint, weights: bool = True) -> str | None:
        """The first field in which another model differs, in words; None where it is the same model.

        Args:
            found: the fingerprint of the model at hand. A cast of the weights to another dtype is no difference.
            weights: whether its weights are there to be compared.
        """
        for field in ("kind", "model_type"):
            if getattr(self, field) != getattr(found, field):
                return f"{_WORDS[field]} is {getattr(self, field)} in the file and {getattr(found, field)} here"
        for name in sorted(self.config.keys() & found.config.keys()):
            if self.config[name] != found.config[name]:
                return f"config.{name} is {_said(self.config[name])} in the file and {_said(found.config[name])} here"
        if self.layers != found.layers:
            return f"attention modules that take part are {self.layers} in the file and {found.layers} here"
        if self.shapes != found.shapes:
            return (
                "names or shapes of parameters differ, in the model or in Transformers' code of it: "
                f"digest {self.shapes} in the file and {found.shapes} here"
            )
        return self._other_weights(found) if weights else None

    def _other_weights(self, found: Fingerprint) -> str | None:
        ours, theirs = (np.frombuffer(base64.b64decode(one.weights), dtype="<f4") for one in (self, found))
        if ours.size != theirs.size:
            return f"weights are told by {ours.size} numbers in the file and by {theirs.size} here"
        rounding, floor = 0.0, 0.0
        if self.dtype != found.dtype:
            rounding = max(torch.finfo(getattr(torch, one.dtype)).eps for one in (self, found))
            floor = _TINY
        known = ~np.isnan(theirs) & ~np.isnan(ours)
        apart = np.abs(ours - theirs) > rounding * np.maximum(np.abs(ours), np.abs(theirs)) + floor
        count = int((apart & known).sum())
        if not count:
            return None
        return f"weights differ: {count} of {ours.size} numbers that were compared, as in a model trained further"


_WORDS = {"kind": "class", "model_type": "model_type"}


def is_dtype(name: str) -> bool:
    """Whether this is the name of a floating-point dtype of PyTorch."""
    found = getattr(torch, name, None)
    return isinstance(found, torch.dtype) and found.is_floating_point


def _sizes(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a config that say how large something is, by their dotted names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            if name not in ("label2id", "id2label", "task_specific_params", "quantization_config"):
                yield from _sizes(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and _SHAPE.search(str(name)):
            yield f"{prefix}{name}", value


def _said(number: float) -> str:
    """A number of a config: integers with all of their digits, of which damage can make more than a float holds."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def _tensors(model: Any) -> dict[str, Tensor]:
    """The tensors that a model saves, by name. Tied parameters have both of their names, whether they are tied yet or
    not."""
    return {name: one for name, one in model.state_dict(keep_vars=True).items() if isinstance(one, Tensor)}


def _shapes(model: Any) -> str:
    told = "\n".join(f"{name} {tuple(one.shape)}" for name, one in _tensors(model).items())
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _dtype(model: Any) -> str:
    floating = (one.dtype for one in model.parameters() if one.is_floating_point())
    return str(next(floating, torch.float32)).removeprefix("torch.")


@torch.no_grad()
def _numbers(model: Any) -> np.ndarray:
    """The numbers of all tensors, float32 (2 · tensors,); NaN for tensors without data."""
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    total = 0
    for parameter in _tensors(model).values():
        for _ in range(_SAMPLES):
            if parameter.numel() and not parameter.is_meta:
                place = np.unravel_index(total * _STEP % parameter.numel(), tuple(parameter.shape))
                number = parameter[tuple(int(i) for i in place)].detach().float()
                by_device.setdefault(parameter.device, []).append((total, number))
            total += 1
    numbers = np.full(total, np.nan, dtype="<f4")
    for found in by_device.values():
        numbers[[index for index, _ in found]] = torch.stack([number for _, number in found]).cpu().numpy()
    return numbers
