"""Hugging Face Transformers: ``attn_implementation="dynattn:nm-2-4"``.

    dynattn.integrations.transformers.register()
    model.set_attn_implementation("dynattn:nm-2-4")            # or from_pretrained(..., attn_implementation=...)

The semantics are those of transformers' own ``sdpa`` implementation: with ``dynattn:dense`` a model's outputs equal
the ``sdpa`` ones up to rounding, or the ``eager`` ones where it has no ``sdpa`` or ``sdpa`` loses causality. What this
attention cannot compute raises; nothing that a model passes is dropped. Modules that keep attention of their own are
named in a warning.

Keys are grouped by their index in the key-value cache, so decoding with a cache keeps what one pass over the whole
text keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dynattn.integrations.transformers import assigned, attend, loading, masks
from dynattn.integrations.transformers.assigned import assign, attention_modules
from dynattn.integrations.transformers.audit import Audit, Loss, audit
from dynattn.integrations.transformers.caches import follow
from dynattn.integrations.transformers.calls import Call, observing
from dynattn.integrations.transformers.coverage import PREFIX, Coverage, Part, coverage
from dynattn.integrations.transformers.fingerprint import Fingerprint
from dynattn.integrations.transformers.loaded import load
from dynattn.integrations.transformers.tuned import Evidence, Tuned
from dynattn.methods import Method
from dynattn.methods.registry import given

__all__ = [
    "COMMON",
    "Audit",
    "Call",
    "Coverage",
    "Evidence",
    "Fingerprint",
    "Loss",
    "Part",
    "Tuned",
    "assign",
    "attention_modules",
    "audit",
    "coverage",
    "follow",
    "load",
    "observing",
    "register",
]

COMMON = (
    "dense", "nm-1-2", "nm-2-4", "nm-1-4", "nm-4-8", "nm-1-2-w64-s4", "nm-2-4-w64-s4", "nm-1-2-x16", "nm-2-4-x16",
)  # fmt: skip
"""The methods that :func:`register` registers in any case."""


def register(*methods: Method | str) -> tuple[str, ...]:
    """Make ``attn_implementation="dynattn:<method>"`` known to Transformers. May be called again at any time.

    From the first call on, Transformers' models ask about such names when they are loaded and when
    ``set_attn_implementation`` is called. A name whose method is not registered yet is registered then, and a model
    that keeps attention of its own, wholly or in part, gives a warning.

    Args:
        methods: methods or their short names, registered besides :data:`COMMON`; or the path of a tuned file, which
            ends in ``.json`` and is read when a model is given its name.

    Returns:
        The names now known, those of ``methods`` first.

    Raises:
        ImportError: transformers is not installed.
        TypeError: one is neither a method nor a name.
        ValueError: a name is not a method's.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError(
            "dynattn.integrations.transformers: needs transformers 5 or newer: pip install 'dynattn[transformers]'"
        ) from error
    known: dict[str, tuple[Callable[..., Any], bool]] = {}
    for method in (*methods, *COMMON):
        if isinstance(method, str) and assigned.is_assigned(PREFIX + method):
            known[PREFIX + method] = assigned.forward, True  # modules hold their methods, which may look at positions
            continue
        found = given(method, "register")
        name, method = method if isinstance(method, str) else found.name, found
        known[PREFIX + name] = partial(attend.forward, method=method), method.looks_at_positions
    for name, (forward, positions) in known.items():
        AttentionInterface.register(name, forward)
        # Without this line Transformers drops every mask, and says nothing.
        AttentionMaskInterface.register(name, partial(masks.make, positions=positions))
    loading.install(register)
    return tuple(known)
