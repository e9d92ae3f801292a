"""What a model takes along when it is pickled: the name of its method, and what its masks must be like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynattn.integrations.transformers import contracts
from dynattn.integrations.transformers.contracts import Contract
from dynattn.integrations.transformers.coverage import PREFIX


def _restore(name: str, notes: tuple[tuple[type, Contract, bool], ...]) -> Registered:
    from dynattn.integrations.transformers import register

    try:
        register(name.removeprefix(PREFIX))
    except ValueError as error:
        raise ValueError(
            f"dynattn: the model was pickled with attn_implementation='{name}', and no class of this process has a "
            "method of that name; import the module that defines it first, or name it in DYNATTN_METHODS"
        ) from error
    for kind, contract, sdpa in notes:
        contracts.note(kind, contract, sdpa)
    return Registered(name, notes)


class Registered:
    """Held by a model, so that a process that unpickles the model knows the method too."""

    def __init__(self, name: str, notes: tuple[tuple[type, Contract, bool], ...]) -> None:
        self.name = name
        self.notes = notes

    def __reduce__(self) -> tuple[Callable[..., Registered], tuple[Any, ...]]:
        return _restore, (self.name, self.notes)
