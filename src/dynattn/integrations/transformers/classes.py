"""How a class attends, read from its code: through Transformers' interface, by arithmetic of its own, or not at all.

Transformers asks each attention module for nothing: a module takes part where its code looks the implementation up in
an ``AttentionInterface``. Whether it does is seen in the names that its functions refer to, without running them.
"""

from __future__ import annotations

import dis
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn

from dynattn.integrations.transformers import flows

# Code that computes attention itself refers to a softmax and to products, or to one of these functions, which compute
# all of attention. Routers and matching losses have a softmax and products too, so in that case the class's name has to
# speak of attention, or the code has to hand what the softmax gives on to a product.
_WHOLE = {
    "scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention", "memory_efficient_attention",
    "flash_attn_func", "flash_attn_varlen_func",
}  # fmt: skip
_NAMED = re.compile(r"attn|attention|pool", re.IGNORECASE)
_CAUSAL_MASKS = re.compile(r"create_.*causal_mask|create_masks_for_generate")
_FOREIGN = ("torch", "builtins", "abc", "typing")  # modules whose classes are not looked into


class Names(NamedTuple):
    """What the functions of a class, and the functions that they call, refer to.

    Attributes:
        plain: names of globals and attributes.
        texts: string constants.
        globals: the objects that global names stand for.
        codes: the functions' codes.
    """

    plain: frozenset[str]
    texts: frozenset[str]
    globals: dict[str, Any]
    codes: frozenset[CodeType]


@cache
def names(cls: type) -> Names:
    """The names in the code of a class and of its bases, except for those of PyTorch and of Transformers' tools."""
    plain: set[str] = set()
    texts: set[str] = set()
    found: dict[str, Any] = {}
    seen: set[CodeType] = set()
    for base in cls.__mro__:
        if not _looked_into(base.__module__):
            continue
        scope = vars(sys.modules.get(base.__module__, sys))
        pending = [(code, scope) for member in vars(base).values() for code in _codes(member)]
        while pending:
            code, scope = pending.pop()
            if code in seen:
                continue
            seen.add(code)
            plain.update(code.co_names)
            if _multiplies(code):
                plain.add("@")
            texts.update(_texts(code.co_consts))
            for name in code.co_names:
                if name in scope:
                    found[name] = value = scope[name]
                    if isinstance(value, FunctionType) and _is_followed(value.__module__, base.__module__):
                        pending.extend((inner, value.__globals__) for inner in _codes(value))
    return Names(frozenset(plain), frozenset(texts), found, frozenset(seen))


def asks_interface(cls: type) -> bool:
    """Whether the class looks attention functions up in one of Transformers' interfaces."""
    from transformers import AttentionInterface

    return any(isinstance(value, AttentionInterface) for value in names(cls).globals.values())


def attends_itself(cls: type) -> bool:
    """Whether the class computes attention and does not ask the interface for it."""
    from transformers import PreTrainedModel

    if issubclass(cls, nn.MultiheadAttention):
        return True
    if not issubclass(cls, nn.Module) or asks_interface(cls):
        return False
    return calls_attention(cls) or (not issubclass(cls, PreTrainedModel) and looks_like_attention(cls))


def looks_like_attention(cls: type) -> bool:
    """Whether the class builds PyTorch's attention module, or is called attention and has a softmax and products."""
    plain = names(cls).plain
    return "MultiheadAttention" in plain or (bool(_NAMED.search(cls.__name__)) and _has_both(plain))


@cache
def calls_attention(cls: type) -> bool:
    """Whether the class's own code computes attention, in place of a module inside it."""
    plain = names(cls).plain
    return bool(plain & _WHOLE) or (_has_both(plain) and flows.attends(names(cls).codes))


def tables(cls: type) -> tuple[str, ...]:
    """Names of the tables from implementations to attention classes that the class picks from while it is built."""
    return tuple(
        sorted(
            name
            for name, value in names(cls).globals.items()
            if isinstance(value, dict)
            and {"eager", "sdpa", "flash_attention_2"} & set(value)
            and all(_is_module_class(member) for member in value.values())
        )
    )


@cache
def parts(cls: type) -> tuple[type, ...]:
    """The class and the module classes that its code can build, except for models, which have parts of their own."""
    from transformers import PreTrainedModel

    found: list[type] = []
    pending = [cls]
    while pending:
        one = pending.pop()
        if one in found or (one is not cls and issubclass(one, PreTrainedModel)):
            continue
        found.append(one)
        for value in names(one).globals.values():
            members = value.values() if isinstance(value, dict) else [value]
            pending.extend(each for each in members if _is_module_class(each) and _looked_into(each.__module__))
    return tuple(found)


@cache
def holds_models(cls: type) -> bool:
    """Whether the class's code can build other models: by their classes, an Auto class, or the loader of backbones."""
    from transformers import PreTrainedModel

    for one in parts(cls):
        for name, value in names(one).globals.items():
            members = value.values() if isinstance(value, dict) else [value]
            if name.startswith("Auto") or name == "load_backbone":
                return True
            if any(_is_module_class(each) and issubclass(each, PreTrainedModel) for each in members if each is not cls):
                return True
    return False


@cache
def may_take_part(cls: type) -> bool:
    """Whether anything that the class's code can build, models inside it too, asks the interface, or may."""
    from transformers import PreTrainedModel

    seen: list[type] = [PreTrainedModel]
    pending = [cls]
    while pending:
        model = pending.pop()
        seen.append(model)
        for one in parts(model):
            if asks_interface(one):
                return True
            for name, value in names(one).globals.items():
                if name.startswith("Auto") or name == "load_backbone":
                    return True
                members = value.values() if isinstance(value, dict) else [value]
                for each in members:
                    if _is_module_class(each) and issubclass(each, PreTrainedModel) and each not in seen:
                        pending.append(each)
    return False


@cache
def makes_causal_masks(cls: type) -> bool:
    """Whether the class's own code, in place of a model inside it, has Transformers make masks that may be causal."""
    return any(_CAUSAL_MASKS.search(name) for name in names(cls).plain)


def _has_both(plain: frozenset[str]) -> bool:
    return bool(plain & flows.SOFTMAX) and bool(plain & (flows.PRODUCTS | {"@"}))


def _is_module_class(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _looked_into(module: str) -> bool:
    if module.split(".")[0] in _FOREIGN:
        return False
    return module not in ("transformers.modeling_utils", "transformers.generation.utils")


def _is_followed(function: str, cls: str) -> bool:
    """Whether a function of one file, called by a class of another, is looked into: Transformers' own tools are not."""
    tools = function.startswith("transformers.") and not function.startswith("transformers.models.")
    return function == cls or (_looked_into(function) and not tools)


def _codes(member: Any) -> Iterator[CodeType]:
    """The code of a function, through decorators and properties, and of the functions inside it."""
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    if isinstance(member, property):
        member = member.fget
    member = inspect.unwrap(member) if callable(member) else member
    if not isinstance(member, FunctionType):
        return
    pending = [member.__code__]
    while pending:
        code = pending.pop()
        yield code
        pending.extend(inner for inner in code.co_consts if isinstance(inner, CodeType))


@cache
def _multiplies(code: CodeType) -> bool:
    return any(step.argrepr in ("@", "@=") for step in dis.get_instructions(code))


def _texts(constants: tuple) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, (tuple, frozenset)):
            yield from _texts(tuple(constant))
