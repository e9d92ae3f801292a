"""Which configs the attention modules of a model read: they say which implementation a module gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dynattn.integrations.transformers.coverage import PREFIX, Part, survey


def inside(config: Any) -> list[Any]:
    """A config and those inside it."""
    found: list[Any] = []
    pending = [config]
    while pending:
        one = pending.pop()
        if one is not None and not any(one is other for other in found):
            found.append(one)
            pending.extend(getattr(one, name, None) for name in one.sub_configs)
    return found


def read_by_its_own(model: Any) -> Iterator[type]:
    """The classes of the configs that attention modules of a model read, except for those of models inside it."""
    from transformers import PreTrainedModel

    inner = tuple(f"{name}." for name, module in model.named_modules() if name and isinstance(module, PreTrainedModel))
    modules = dict(model.named_modules())
    for kind, part in survey(modules.items()):
        if kind == "asks" and not part.name.startswith(inner):
            config = getattr(modules[part.name], "config", None)
            if config is not None:
                yield type(config)


def detached(model: Any) -> Iterator[Part]:
    """Modules that read another config than the models around them, so that no change of implementation reaches them.

    An encoder–decoder pair that is made of two models gives them copies of their configs.
    """
    from transformers import PreTrainedModel

    known = {
        id(config)
        for module in model.modules() if isinstance(module, PreTrainedModel)
        for config in inside(module.config)
    }  # fmt: skip
    modules = dict(model.named_modules())
    for kind, part in survey(modules.items()):
        if kind == "asks" and id(getattr(modules[part.name], "config", None)) not in known:
            yield part


def lost(model: Any, given: list[Any]) -> list[Part]:
    """The modules whose config was among those that named dynattn before the model was built, and does no more."""
    modules = dict(model.named_modules())
    return [
        part
        for kind, part in survey(modules.items())
        if kind == "asks"
        and not str(part.implementation).startswith(PREFIX)
        and any(modules[part.name].config is one for one in given)
    ]
