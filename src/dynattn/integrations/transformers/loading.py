"""What happens when a Transformers model is given the name of a dynattn method.

Transformers asks a model class whether it can run ``sdpa``, and nothing about other implementations: it takes any
registered name and hands masks of that name to whatever the model does with them. :func:`install` adds the question.
A model whose attention does not ask the interface gets the implementation that Transformers would choose by itself,
and a warning; a model of which parts take part gets a warning that names the others, and masks that are right for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn

from dynattn.integrations.transformers import classes, contracts
from dynattn.integrations.transformers.contracts import Contract
from dynattn.integrations.transformers.coverage import PREFIX, Part, kinds_of, survey
from dynattn.integrations.transformers.packed import refuse_restarts

_installed = False


class Registered:
    """Held by a model, so that a process that unpickles the model knows the method too."""

    def __init__(self, name: str, notes: tuple[tuple[type, Contract, bool], ...]) -> None:
        self.name = name
        self.notes = notes

    def __reduce__(self) -> tuple[Callable[..., Registered], tuple[Any, ...]]:
        return _restore, (self.name, self.notes)


def install(register: Callable[[str], Any]) -> None:
    """Have Transformers ask about dynattn's names; does nothing when called again.

    Args:
        register: registers the method of a short name.
    """
    global _installed
    if _installed:
        return
    from transformers import PreTrainedModel, masking_utils

    PreTrainedModel.get_correct_attn_implementation = _checking(  # type: ignore[method-assign]
        PreTrainedModel.get_correct_attn_implementation, register
    )
    PreTrainedModel.post_init = _surveying(PreTrainedModel.post_init)  # type: ignore[method-assign]
    masking_utils._preprocess_mask_arguments = _refusing_restarts(masking_utils._preprocess_mask_arguments)
    _installed = True


def _checking(original: Callable[..., str], register: Callable[[str], Any]) -> Callable[..., str]:
    @wraps(original)
    def check(self: Any, requested_attention: str | None, is_init_check: bool = False) -> str:
        if not isinstance(requested_attention, str) or PREFIX not in requested_attention:
            return original(self, requested_attention, is_init_check)
        if not requested_attention.startswith(PREFIX):
            raise ValueError(
                f"dynattn: attn_implementation cannot be {requested_attention!r}: paged caches and kernels from the "
                f"hub are other implementations; write '{PREFIX}nm-2-4' or another method alone"
            )
        _make_known(requested_attention, register)
        if _keeps_its_own(self, is_init_check):
            before = self.config._attn_implementation
            chosen = before if not is_init_check and not _ours(before) else original(self, None, is_init_check)
            _warn_of_none(self, requested_attention, chosen)
            return chosen
        if not is_init_check:
            _look(self, requested_attention)
        return requested_attention

    return check


def _surveying(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def post_init(self: Any) -> None:
        original(self)
        if _ours(self.config._attn_implementation):
            _look(self, self.config._attn_implementation)

    return post_init


def _refusing_restarts(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def preprocess(
        config: Any, inputs_embeds: Any, attention_mask: Any, past_key_values: Any, position_ids: Any, *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        if _ours(config._attn_implementation):
            refuse_restarts(position_ids, attention_mask, past_key_values)
        return original(config, inputs_embeds, attention_mask, past_key_values, position_ids, *args, **kwargs)

    return preprocess


def _ours(implementation: Any) -> bool:
    return isinstance(implementation, str) and implementation.startswith(PREFIX)


def _make_known(name: str, register: Callable[[str], Any]) -> None:
    from transformers import AttentionInterface

    if name not in AttentionInterface._global_mapping:
        register(name.removeprefix(PREFIX))


def _keeps_its_own(model: Any, building: bool) -> bool:
    """Whether nothing of the model itself takes part, nor of models inside it that only hear of the name by it."""
    cls = type(model)
    built_from = classes.parts(cls)
    if building and any(classes.tables(one) for one in built_from):
        return True  # which would be a KeyError while it is built
    if any(classes.asks_interface(one) for one in built_from):
        return False
    if building:
        return not classes.holds_models(cls) or any(classes.attends_itself(one) for one in built_from)
    return not any(kind == "asks" for kind, _ in survey(model.named_modules()))


def _look(model: Any, name: str) -> None:
    """Note what masks the model needs, and warn of the modules that keep their own attention."""
    from transformers import PreTrainedModel

    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    found = list(survey(model.named_modules()))
    contract = max(_needs(one) for one in models)
    contracts.note(model.config, contract, all(one._supports_sdpa for one in models if one.config is model.config))
    notes = ((type(model.config), contract, model._supports_sdpa),)
    model.dynattn_registered = Registered(name, notes)
    inner = [f"{inside}." for inside, module in model.named_modules() if inside and _checked_apart(module, model)]
    rest = [part for kind, part in found if kind != "asks" and not part.name.startswith(tuple(inner))]
    if rest:
        _warn_of_some(model, name, rest)
    elif not found and len(models) == 1:
        _warn_of_none(model, name, name)


def _checked_apart(module: nn.Module, model: Any) -> bool:
    """Whether a module is a model that Transformers checks and that was warned of by itself."""
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel) and module is not model


def _needs(model: Any) -> Contract:
    """What the masks of a model must be like for the modules that it holds."""
    kinds = {kind for kind, _ in survey(model.named_modules())}
    if not kinds:
        return Contract.SDPA
    if not model._supports_sdpa or "own" in kinds:
        return Contract.ADDED
    asks_for_sdpa = any("sdpa" in classes.names(type(module)).texts for module in model.modules())
    return Contract.WHOLE if asks_for_sdpa else Contract.SDPA


def _warn_of_some(model: Any, name: str, parts: list[Part]) -> None:
    warnings.warn(
        f"dynattn: {type(model).__name__} takes part in '{name}' in part: {len(parts)} of its attention modules keep "
        f"attention of their own ({kinds_of(parts)}), since they do not ask Transformers' attention interface; "
        "dynattn.integrations.transformers.coverage(model) lists them",
        stacklevel=2,
    )


def _warn_of_none(model: Any, name: str, chosen: str) -> None:
    own = [one.__name__ for one in classes.parts(type(model)) if classes.attends_itself(one)]
    what = f"keeps its own attention ({', '.join(own)})" if own else "has no attention that could be replaced"
    warnings.warn(
        f"dynattn: '{name}' changes nothing in {type(model).__name__}, which {what}: it does not ask Transformers' "
        f"attention interface; it runs with attn_implementation='{chosen}'",
        stacklevel=2,
    )


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
        contracts.note_kind(kind, contract, sdpa)
    return Registered(name, notes)
