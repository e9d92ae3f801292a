"""Methods that choose weights or inputs, by name."""

from __future__ import annotations

from dynattn.methods.classes import Classes
from dynattn.sparsity.method import SparsityMethod

_known: Classes[SparsityMethod] = Classes(
    SparsityMethod,
    "dynattn.sparsity.SparsityMethod",
    "sparsity.parse: name must be a short name of a method that chooses weights or inputs: got {name!r}; use "
    "'magnitude-0.5', 'nmweight-2-4', 'wanda-0.5', 'randomweight-0.5', 'nmact-8-16', 'teal-0.5', 'wina-0.5' or "
    "'chess-0.5', and register() for a method of your own",
)
register, find, parse = _known.add, _known.find, _known.parse
