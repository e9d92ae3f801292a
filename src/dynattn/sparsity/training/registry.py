"""Recipes of training, by name."""

from __future__ import annotations

from dynattn.methods.classes import Classes
from dynattn.sparsity.training.base import Recipe

_known: Classes[Recipe] = Classes(
    Recipe,
    "dynattn.sparsity.training.Recipe",
    "training.parse: name must be a short name of a recipe: got {name!r}; use 'sr-ste-2-4', 'mdgf-exponential-1-8' or "
    "'bdwp-2-8', and register() for a recipe of your own",
)
register, find, parse = _known.add, _known.find, _known.parse
