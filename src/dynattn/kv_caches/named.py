"""Caches by name, as tuned files hold them: ``full``, ``window-1024-s4``, ``spatten-0.25``, ``quest-1024``,
``snapkv-1024-r64``."""

from __future__ import annotations

import re
from typing import Any

from dynattn.kv_caches.adasnapkv import AdaSnapKVCache
from dynattn.kv_caches.full import FullCache
from dynattn.kv_caches.layer import LayeredCache
from dynattn.kv_caches.quest import QuestCache
from dynattn.kv_caches.snapkv import SnapKVCache
from dynattn.kv_caches.snapkv_options import Options
from dynattn.kv_caches.spatten import SpAttenCache
from dynattn.kv_caches.window import WindowCache
from dynattn.methods import Quest

EVERY = 16
"""So many tokens come between two evictions."""

_WINDOW = re.compile(r"window-(\d+)-s(\d+)")
_SPATTEN = re.compile(r"spatten-(0\.\d+)")
_CUT_ONCE = {"snapkv": SnapKVCache, "adasnapkv": AdaSnapKVCache}


def make(name: str, config: Any) -> LayeredCache:
    """A new cache, for one generation.

        tuned = dynattn.integrations.transformers.load(model, "model.dynattn.json")
        model.generate(**prompt, past_key_values=kv_caches.make(tuned.cache, model.config))

    Args:
        name: ``full``, ``window-TOKENS-sSINKS``, ``spatten-SHARE``, ``quest-TOKENS``, with ``-pPAGE`` for pages of
            other than 16 keys, ``snapkv-TOKENS`` or ``adasnapkv-TOKENS``. Behind the tokens of the last two,
            ``-qQUERIES-pPOOL-rRECENT-sSINKS`` say what is not as by default.
        config: the configuration of the model.

    Raises:
        TypeError: ``name`` is no text, as where a tuned file names no cache.
        ValueError: no cache has this name.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"kv_caches.make: name must be the name of a cache: got {name!r}; a file that was tuned for prefill alone "
            "names none: leave past_key_values out"
        )
    if name == "full":
        return FullCache()
    if match := _WINDOW.fullmatch(name):
        return WindowCache(int(match[1]), int(match[2]), every=EVERY)
    if match := _SPATTEN.fullmatch(name):
        return SpAttenCache(config, float(match[1]), every=EVERY)
    if quest := Quest.from_name(name):
        return QuestCache(quest.budget, quest.page)
    kind, _, rest = name.partition("-")
    if kind in _CUT_ONCE and (options := Options.from_name(rest)):
        return _CUT_ONCE[kind](**vars(options))
    raise ValueError(
        "kv_caches.make: name must be full, window-TOKENS-sSINKS, spatten-SHARE, quest-TOKENS, snapkv-TOKENS or "
        f"adasnapkv-TOKENS: got {name!r}; try window-1024-s4"
    )
