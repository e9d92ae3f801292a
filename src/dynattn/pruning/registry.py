"""Methods by which layers see fewer tokens, by name.

@dynattn.pruning.register
@dataclass(frozen=True)
class Newest(Pruning): ...
"""

from __future__ import annotations

from dynattn.methods.classes import Classes
from dynattn.pruning.base import TokenMethod

_known: Classes[TokenMethod] = Classes(
    TokenMethod,
    "dynattn.pruning.TokenMethod",
    "pruning.parse: name must be a pruning method's short name: got {name!r}; use 'spatten-0.5', 'ltp-0.01', "
    "'random-tokens-0.5', 'first-tokens-0.5' or 'ftp-0.3', and register() for a method of your own",
)
register, find, parse = _known.add, _known.find, _known.parse
