"""Ways to decode: an attention implementation and a cache, by a name that says both.

dense                   Transformers' default: SDPA over a cache that is copied at every step
dense-in-place          the same over a cache in buffers
nm-2-4, window-256-s4   a method of this project over the whole cache, in buffers
cache-window-256-s4     dense over a cache of the first 4 and the latest 256 tokens
cache-spatten-0.25      dense over a cache pruned after SpAtten, 0.25 of the tokens in the last layer
cache-quest-1024        dense over the pages of a whole cache that Quest chooses, 1024 tokens of them
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dynattn.integrations.transformers import register
from dynattn.methods import Quest

BASELINE = "dense"
EVERY = 16
"""So many tokens come between two evictions."""
_CACHE, _QUEST = "cache-", "cache-quest-"
_WINDOW = re.compile(r"cache-window-(\d+)-s(\d+)")
_SPATTEN = re.compile(r"cache-spatten-(flat-)?(0\.\d+)")


@dataclass(frozen=True)
class Way:
    """How to decode.

    Attributes:
        name: see the module.
        implementation: the implementation of attention, as Transformers knows it; prompts are always read densely.
        cache: makes an empty cache for a model's config.
    """

    name: str
    implementation: str
    cache: Callable[[Any], Any]

    @property
    def together(self) -> str:
        """The implementation that reads several tokens at once. SDPA cannot do so where tokens were evicted."""
        return "dynattn:dense" if self.implementation == "sdpa" else self.implementation

    @property
    def forgets(self) -> bool:
        """Whether the cache evicts tokens, of which nobody knows the weights that they would have had."""
        return self.name.startswith(_CACHE) and not self.name.startswith(_QUEST)


def find(name: str) -> Way:
    """A way by name.

    Raises:
        ValueError: the name is none.
    """
    from transformers import DynamicCache

    from dynattn.kv_caches import FullCache, QuestCache, SpAttenCache, WindowCache

    register()
    if name == BASELINE:
        return Way(name, "sdpa", lambda config: DynamicCache(config=config))
    if name == "dense-in-place":
        return Way(name, "sdpa", lambda config: FullCache())
    if match := _WINDOW.fullmatch(name):
        window, sinks = map(int, match.groups())
        return Way(name, "sdpa", lambda config: WindowCache(window, sinks, every=EVERY))
    if match := _SPATTEN.fullmatch(name):
        flat, keep = match[1], float(match[2])
        return Way(
            name,
            "dynattn:dense",
            lambda config: SpAttenCache(config, _flat(config, keep) if flat else keep, every=EVERY),
        )
    if name.startswith(_QUEST) and (quest := Quest.from_name(name.removeprefix(_CACHE))):
        return Way(name, "dynattn:dense", lambda config: QuestCache(quest.budget, quest.page))
    (implementation, *_) = register(name)
    return Way(name, implementation, lambda config: FullCache())


def _flat(config: Any, keep: float) -> list[float]:
    """The same ratio for every layer but the first 15%."""
    layers = config.get_text_config(decoder=True).num_hidden_layers
    whole = math.ceil(0.15 * layers)
    return [1.0] * whole + [keep] * (layers - whole)
