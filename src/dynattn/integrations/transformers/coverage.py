"""Which attention modules of a model take part, and which keep attention of their own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from dynattn.integrations.transformers import classes

PREFIX = "dynattn:"

_NAMED = re.compile(r"attn|attention", re.IGNORECASE)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


class Part(NamedTuple):
    """An attention module of a model.

    Attributes:
        name: its name in ``model.named_modules()``.
        kind: the name of its class.
        implementation: the implementation that its config asks for; None where it asks for none.
    """

    name: str
    kind: str
    implementation: str | None


@dataclass(frozen=True)
class Coverage:
    """Which attention modules of a model take part; print it to read it.

    Attributes:
        taking_part: modules that ask Transformers' attention interface, and get dynattn.
        elsewhere: modules that ask the interface, and get another implementation.
        own: modules that compute attention themselves, whatever implementation is set.
        unknown: modules that are called attention, and whose code does not show how they attend.
    """

    taking_part: tuple[Part, ...]
    elsewhere: tuple[Part, ...]
    own: tuple[Part, ...]
    unknown: tuple[Part, ...]

    def __str__(self) -> str:
        said = {
            "take part": self.taking_part,
            "use another implementation": self.elsewhere,
            "keep attention of their own": self.own,
            "attend in a way that their code does not show": self.unknown,
        }
        return "\n".join(
            f"{len(parts)} attention modules {what}" + "".join(f"\n  {line}" for line in _lines(parts))
            for what, parts in said.items()
            if parts or what == "take part"
        )


def coverage(model: nn.Module) -> Coverage:
    """Which attention modules of a Transformers model take part, and which keep attention of their own.

    This is found in the code of the modules' classes, which is not run: a module takes part if its code asks
    Transformers' attention interface and its config names a dynattn method. Code that asks only sometimes counts as
    asking; :func:`observing` shows the calls that are really made. Attention without source, as in compiled
    extensions, or without a softmax by that name is not seen.

    Args:
        model: any module; its attention modules have the configs.

    Returns:
        The modules by what they do; print it to read it.
    """
    found: dict[str, list[Part]] = {"taking_part": [], "elsewhere": [], "own": [], "unknown": []}
    for what, part in survey(model.named_modules()):
        if what == "asks":
            given = part.implementation
            what = "unknown" if given is None else "taking_part" if given.startswith(PREFIX) else "elsewhere"
        found[what].append(part)
    return Coverage(**{what: tuple(parts) for what, parts in found.items()})


def survey(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, Part]]:
    """The attention modules among these, each with ``asks``, ``own`` or ``unknown``.

    Where they nest, those that hold others are left out, unless their own code attends too.
    """
    kinds = [(name, kind, module) for name, module in modules if (kind := _kind(type(module))) is not None]
    holding: dict[str, set[str]] = {}  # what is inside the modules around an attention module
    for name, kind, _ in kinds:
        while name:
            name = name.rpartition(".")[0]
            holding.setdefault(name, set()).add(kind)
    for name, kind, module in kinds:
        inside = holding.get(name, set())
        if kind != "asks" and (inside & {"asks", "own"} or kind in inside) and not _attends_too(kind, type(module)):
            continue
        config = getattr(module, "config", None)
        yield kind, Part(name, type(module).__name__, getattr(config, "_attn_implementation", None))


def kinds_of(parts: Iterable[Part]) -> str:
    """The classes of some parts, each once, as text."""
    return ", ".join(dict.fromkeys(part.kind for part in parts))


def _kind(cls: type) -> str | None:
    from transformers import PreTrainedModel

    if not issubclass(cls, PreTrainedModel) and classes.asks_interface(cls):
        return "asks"
    if classes.attends_itself(cls):
        return "own"
    named = _NAMED.search(cls.__name__) and not cls.__name__.endswith(("Output", "Model", "Layer"))
    return "unknown" if named and not issubclass(cls, PreTrainedModel) else None


def _attends_too(kind: str, cls: type) -> bool:
    return kind == "own" and not issubclass(cls, nn.MultiheadAttention) and classes.calls_attention(cls)


def _lines(parts: tuple[Part, ...]) -> Iterator[str]:
    counted = Counter((_NUMBER.sub("*", part.name), part.kind, part.implementation) for part in parts)
    for (name, kind, implementation), count in counted.items():
        asked = f", {implementation}" if implementation else ""
        yield f"{name}: {kind}{asked}" + (f" ({count})" if count > 1 else "")
