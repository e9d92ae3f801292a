"""Key-value caches for generation, which hold fewer tokens or read fewer. The memory of evicted tokens is really freed.

    cache = dynattn.kv_caches.WindowCache(window=1024, sinks=4)
    model.generate(**prompt, past_key_values=cache)

The first forward, over the prompt, is dense; then the cache is cut, or pages of it are chosen, and decoding reads what
is left.
"""

from dynattn.kv_caches.full import FullCache
from dynattn.kv_caches.named import make
from dynattn.kv_caches.quest import QuestCache
from dynattn.kv_caches.spatten import SpAttenCache
from dynattn.kv_caches.window import WindowCache

__all__ = ["FullCache", "QuestCache", "SpAttenCache", "WindowCache", "make"]
