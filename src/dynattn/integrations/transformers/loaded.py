"""Loads a tuned file into a model: checks it, puts its methods into the model's modules, and sets its name.

A file can come by :func:`load`, by ``set_attn_implementation``, or by ``from_pretrained``, which builds a model before
it has weights. While a model is built, models inside it are built too, and each is given the name. The one that is of
the file's class takes the methods, and the model that ``from_pretrained`` returns is checked with its weights.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager
from typing import Any

from dynattn.integrations.transformers import assigned, lasting
from dynattn.integrations.transformers.assigned import ASSIGNED, is_assigned
from dynattn.integrations.transformers.coverage import PREFIX
from dynattn.integrations.transformers.shortened import shortening
from dynattn.integrations.transformers.thinned import thinning
from dynattn.integrations.transformers.tuned import SUFFIX, Tuned
from dynattn.methods import parse

_paths: dict[str, str] = {}  # the files of implementations whose names must not contain the path


def load(model: Any, path: str | os.PathLike[str]) -> Tuned:
    """Have a Transformers model attend as a tuned file says.

        load(model, "model.dynattn.json")
        model.set_attn_implementation("sdpa")       # undoes it

    The file is read now: what becomes of it later changes nothing in the model. A model that is pickled or copied takes
    its methods along. One whose file also shortens the sequence, or has linear layers leave something out, can be
    neither, since its layers hold each other; load the file into the copy instead. Its weights must not change
    meanwhile, and stay in the dtype and on the device where they are.

    Args:
        model: the model that was tuned, with its weights, in any dtype.
        path: the path of the file.

    Returns:
        What the file says.

    Raises:
        ImportError: transformers is not installed.
        TypeError: the model is none of Transformers.
        ValueError: the file cannot be read, or the model is another one; the text says in what. The model then is as
            it was.

    Warns:
        Later, and once, when the model is called with a number of keys or in a dtype for which nothing was proved.
    """
    from dynattn.integrations.transformers import register

    if not hasattr(model, "set_attn_implementation"):
        raise TypeError(
            f"load: model must be a model of Transformers: got {type(model).__name__}; give the model inside it"
        )
    tuned = Tuned.read(path)
    register()
    model.set_attn_implementation(PREFIX + os.fspath(path))
    return tuned


def implementation(asked: Any) -> Any:
    """The name to ask Transformers for. It takes every name with "flash" in it, even in a folder's, for one of its
    kernels.

    Args:
        asked: an implementation's name, or names by part, or None.

    Raises:
        ValueError: a part of the model is to be given a tuned file, which is for the whole.
    """
    if isinstance(asked, dict):
        for part, one in asked.items():
            implementation(one)
            if _is_file(one):
                raise ValueError(
                    f"dynattn: a tuned file is for a whole model: got {one!r} for its part {part!r}; give its name by "
                    "itself, or methods' names for parts"
                )
        return asked
    if not _is_file(asked) or "flash" not in asked:
        return asked
    alias = f"{PREFIX}{hashlib.sha256(asked.encode()).hexdigest()[:12]}{SUFFIX}"
    _paths[alias] = asked.removeprefix(PREFIX)
    return alias


def checked(model: Any, asked: Any) -> Tuned | None:
    """The content of the tuned file that a model is about to be given; None where it is given none.

    Args:
        model: the model whose ``set_attn_implementation`` was called.
        asked: the implementation, or implementations by part.

    Raises:
        ValueError: the model is another one, or only a part of it is to be given the file.
    """
    if not _is_file(asked):
        return None
    tuned = Tuned.read(_path(asked))
    tuned.refuse_other(model, source=_path(asked))
    if tuned.pruning is not None:
        from dynattn.pruning import layout  # imports torch._dynamo, which takes a second

        layout.find(model)  # refuses models whose tokens cannot be pruned
    for setting in tuned.linears.values():
        setting.check(model)
    return tuned


def put(model: Any, tuned: Tuned, name: str) -> None:
    """Put the methods of a file into a model that was checked against it, and have it see the tokens that they leave,
    and read what they leave of its linear layers.

    Args:
        model: the model.
        tuned: what the file says.
        name: the name of the implementation.
    """
    _give(model, tuned, name)
    contexts: list[AbstractContextManager[Any]] = []
    if tuned.pruning is not None:
        contexts.append(shortening(model, tuned.pruning))
    if tuned.linears:
        contexts.append(thinning(model, tuned.linears))
    lasting.enter(model, contexts)


def built(model: Any) -> None:
    """Put the methods into a model that was just built and has no weights yet, if it is of the file's class."""
    name = model.config._attn_implementation
    if _is_file(name):
        tuned = Tuned.read(_path(name))
        if tuned.model.kind == type(model).__name__:
            tuned.refuse_other(model, weights=False, source=_path(name))
            _give(model, tuned, name)


def filled(model: Any) -> None:
    """Check a model that now has its weights, and put the methods into it."""
    config = getattr(model, "config", None)
    name = getattr(config, "_attn_implementation", None)
    tuned = checked(model, name)
    if tuned is not None:
        put(model, tuned, str(name))


def _give(model: Any, tuned: Tuned, name: str) -> None:
    methods = {module: parse(method) for module, method in tuned.methods.items()}
    other = parse(tuned.decoding or "dense")
    assigned.put(model, methods, tuned.phase, tuned.limits(_path(name)), other)


def _path(name: str) -> str:
    return _paths.get(name, name.removeprefix(PREFIX))


def _is_file(name: Any) -> bool:
    return is_assigned(name) and name != PREFIX + ASSIGNED
