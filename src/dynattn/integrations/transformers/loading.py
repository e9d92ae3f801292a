"""What happens when a Transformers model is given the name of a dynattn method.

Transformers asks a model class whether it can run ``sdpa``, and nothing about other implementations: it takes any
registered name and hands masks of that name to whatever the model does with them. :func:`install` adds the question.
A model whose attention does not ask the interface gets the implementation that Transformers would choose by itself,
and a warning. A model some of whose modules take part gets a warning that names the others, and masks that are right
for all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakValueDictionary

from dynattn.integrations.transformers import classes, configs, contracts, lasting, loaded, paged
from dynattn.integrations.transformers.assigned import take_back
from dynattn.integrations.transformers.contracts import Contract
from dynattn.integrations.transformers.coverage import PREFIX, Part, kinds_of, survey
from dynattn.integrations.transformers.packed import block_mask
from dynattn.integrations.transformers.registered import Registered

_installed = False
_taking_part: WeakValueDictionary[int, Any] = WeakValueDictionary()  # configs of models that take part, by their id


def install(register: Callable[[str], Any]) -> None:
    """Have Transformers ask about dynattn's names; does nothing when called again.

    Args:
        register: registers the method of a short name.
    """
    global _installed
    if _installed:
        return
    from transformers import PreTrainedModel, masking_utils
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    ContinuousBatchingManager.switch_to_cb_friendly_attn = paged.keeping_ours(  # type: ignore[method-assign]
        ContinuousBatchingManager.switch_to_cb_friendly_attn
    )
    PreTrainedModel.get_correct_attn_implementation = _checking(  # type: ignore[method-assign]
        PreTrainedModel.get_correct_attn_implementation, register
    )
    PreTrainedModel.set_attn_implementation = _telling(PreTrainedModel.set_attn_implementation)  # type: ignore[method-assign]
    PreTrainedModel.post_init = _surveying(PreTrainedModel.post_init)  # type: ignore[method-assign]
    PreTrainedModel.from_pretrained = _loading(PreTrainedModel.from_pretrained.__func__)  # type: ignore[method-assign]
    masking_utils._preprocess_mask_arguments = _keeping_texts_apart(masking_utils._preprocess_mask_arguments)
    _installed = True


def _checking(original: Callable[..., str], register: Callable[[str], Any]) -> Callable[..., str]:
    @wraps(original)
    def check(self: Any, requested_attention: str | None, is_init_check: bool = False) -> str:
        if not _ours(requested_attention):
            return original(self, requested_attention, is_init_check)
        requested_attention = loaded.implementation(str(requested_attention))
        _make_known(str(requested_attention), register)
        if is_init_check:
            vars(self)["_dynattn_given"] = [
                one for one in configs.inside(self.config) if _ours(one._attn_implementation)
            ]
        if is_init_check and _taking_part.get(id(self.config)) is self.config and not _fails(type(self)):
            return str(
                requested_attention
            )  # a part of a model, with its config: what is chosen here would hold for all
        if _keeps_its_own(self, is_init_check):
            before = self.config._attn_implementation
            chosen = before if not is_init_check and not _ours(before) else original(self, None, is_init_check)
            if is_init_check and not _own(self):  # whether it has attention of its own shows when it is built
                vars(self)["_dynattn_asked"] = str(requested_attention)
            else:
                _warn_of_none(self, str(requested_attention), chosen)
            return chosen
        if classes.may_take_part(type(self)):
            _taking_part[id(self.config)] = self.config
        if not is_init_check:
            _look(self, str(requested_attention), building=False)
        return str(requested_attention)

    return check


def _surveying(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def post_init(self: Any) -> None:
        original(self)
        asked = vars(self).pop("_dynattn_asked", None)
        if asked is not None:
            _tell(self, asked)
        given = vars(self).pop("_dynattn_given", [])
        if _ours(self.config._attn_implementation):
            _look(self, self.config._attn_implementation, building=True)
            _warn_of_lost(self, self.config._attn_implementation, given)
            loaded.built(self)

    return post_init


def _telling(original: Callable[..., None]) -> Callable[..., None]:
    """Warn of models that Transformers leaves as they are, since it logs that without naming the modules."""

    @wraps(original)
    def set_attn_implementation(self: Any, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        attn_implementation = loaded.implementation(attn_implementation)
        tuned = loaded.checked(self, attn_implementation)
        lasting.leave(self)
        original(self, attn_implementation, *args, **kwargs)
        take_back(self)
        _forget(self)
        if tuned is not None:
            loaded.put(self, tuned, attn_implementation)
        asked = attn_implementation.get("") if isinstance(attn_implementation, dict) else attn_implementation
        if _ours(asked) and not self._can_set_attn_implementation():
            _warn_of_none(self, str(asked), self.config._attn_implementation)

    return set_attn_implementation


def _forget(model: Any) -> None:
    """Take dynattn's notes from modules that no longer attend by it, so that they are pickled without them."""
    for module in model.modules():
        if "dynattn_registered" in vars(module) and not _ours(module.config._attn_implementation):
            del module.dynattn_registered


def _loading(original: Callable[..., Any]) -> classmethod[Any, Any, Any]:
    """Check a model again once it has its weights: it is built before, and a tuned file has to know them."""

    @wraps(original)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if "attn_implementation" in kwargs:
            kwargs["attn_implementation"] = loaded.implementation(kwargs["attn_implementation"])
        made = original(cls, *args, **kwargs)
        loaded.filled(made[0] if isinstance(made, tuple) else made)
        return made

    return classmethod(from_pretrained)


def _keeping_texts_apart(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def preprocess(
        config: Any, inputs_embeds: Any, attention_mask: Any, past_key_values: Any, position_ids: Any, *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        made = original(config, inputs_embeds, attention_mask, past_key_values, position_ids, *args, **kwargs)
        if _ours(config._attn_implementation):
            return block_mask(made, position_ids, attention_mask, past_key_values, inputs_embeds.shape[0])
        return made

    return preprocess


def _ours(implementation: Any) -> bool:
    return isinstance(implementation, str) and implementation.startswith(PREFIX)


def _make_known(name: str, register: Callable[[str], Any]) -> None:
    from transformers import AttentionInterface

    if name not in AttentionInterface._global_mapping:
        register(name.removeprefix(PREFIX))


def _keeps_its_own(model: Any, building: bool) -> bool:
    """Whether nothing of the model takes part, and nothing of the models inside it that get the name through it
    alone."""
    cls = type(model)
    built_from = classes.parts(cls)
    if building and _fails(cls):
        return True
    if any(classes.asks_interface(one) for one in built_from):
        return False
    if building:
        return not classes.holds_models(cls)
    return not any(kind == "asks" for kind, _ in survey(model.named_modules()))


def _fails(cls: type) -> bool:
    """Whether building a model with a name that it does not know would raise a KeyError."""
    return any(classes.tables(one) for one in classes.parts(cls))


def _look(model: Any, name: str, building: bool) -> None:
    """Note what masks the model needs, and warn of the modules that keep their own attention.

    Models inside it warn of their own modules: while they are built, or later, where Transformers gives them the name
    too.
    """
    from transformers import PreTrainedModel

    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    found = list(survey(model.named_modules()))
    contract = max(_needs(one) for one in models)
    sdpa = all(one._supports_sdpa for one in models if one.config is model.config)
    read = {type(model.config)} if sdpa else {type(model.config), *configs.read_by_its_own(model)}
    notes = tuple((kind, contract, sdpa) for kind in read)
    for note in notes:
        contracts.note(*note)
    model.dynattn_registered = Registered(name, notes)
    apart = [one for one in models if one is not model and (building or _told(one, model))]
    warned = tuple(f"{name}." for name, module in model.named_modules() if any(module is one for one in apart))
    rest = [part for kind, part in found if kind != "asks"]
    rest += [part for part in configs.detached(model) if not _ours(part.implementation)]
    rest = [part for part in rest if not part.name.startswith(warned)]
    if rest and any(kind == "asks" for kind, _ in found):
        _warn_of_some(model, name, rest)
    elif rest:
        _warn_of_none(model, name, "eager")  # the masks are those, and nothing else asks for the name
    elif not found and len(models) == 1:
        _warn_of_none(model, name, name)


def _told(inner: Any, model: Any) -> bool:
    return inner.config is not model.config and inner._can_set_attn_implementation()


def _needs(model: Any) -> Contract:
    """What the masks of a model must be like for the modules that it holds."""
    found = list(survey(model.named_modules()))
    kinds = {kind for kind, _ in found}
    if not kinds:
        return Contract.SDPA
    if not model._supports_sdpa or "own" in kinds or any(configs.detached(model)):
        return Contract.ADDED
    if any("sdpa" in classes.names(type(module)).texts for module in model.modules()):
        return Contract.WHOLE
    asking = (model.get_submodule(part.name) for kind, part in found if kind == "asks")
    causal = any(getattr(module, "is_causal", True) for module in asking)
    return Contract.SHOWN if classes.makes_causal_masks(type(model)) and not causal else Contract.SDPA


def _tell(model: Any, name: str) -> None:
    """Tell what takes part in a model whose code showed nothing before it was built: models inside it may have got the
    name."""
    found = list(survey(model.named_modules()))
    rest = [part for kind, part in found if kind != "asks"]
    if not any(_ours(part.implementation) for kind, part in found if kind == "asks"):
        _warn_of_none(model, name, model.config._attn_implementation)
    elif rest:
        _warn_of_some(model, name, rest)


def _warn_of_lost(model: Any, name: str, given: list[Any]) -> None:
    """Warn of modules whose config named dynattn before the model was built, and does so no longer: PE makes new
    configs for its parts, and a new config that is made from another one loses its implementation."""
    lost = configs.lost(model, given)
    if lost:
        warnings.warn(
            f"dynattn: {type(model).__name__} takes part in '{name}' in part: {len(lost)} of its attention modules run "
            f"another implementation ({kinds_of(lost)}), since the model set their configs anew while it was built; "
            f"call model.set_attn_implementation('{name}')",
            stacklevel=2,
        )


def _warn_of_some(model: Any, name: str, parts: list[Part]) -> None:
    warnings.warn(
        f"dynattn: {type(model).__name__} takes part in '{name}' in part: {len(parts)} of its attention modules keep "
        f"attention of their own ({kinds_of(parts)}), since they do not ask Transformers' attention interface, or not "
        "for this model's config; dynattn.integrations.transformers.coverage(model) lists them",
        stacklevel=2,
    )


def _own(model: Any) -> list[str]:
    """The classes that keep attention of their own: those that its code can build, or else those that it holds."""
    own = [one.__name__ for one in classes.parts(type(model)) if classes.attends_itself(one)]
    found = (part.kind for kind, part in survey(model.named_modules()) if kind == "own")
    return own or list(dict.fromkeys(found))


def _warn_of_none(model: Any, name: str, chosen: str) -> None:
    own = _own(model)
    whose = f" of its own ({', '.join(own)})" if own else " that it has, if any"
    warnings.warn(
        f"dynattn: '{name}' changes nothing in {type(model).__name__}: no module of it asks Transformers' attention "
        f"interface, so it keeps the attention{whose}, and runs as with attn_implementation='{chosen}'",
        stacklevel=2,
    )
