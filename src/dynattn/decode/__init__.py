"""Key-value caches for generation that hold fewer tokens: what they evict is really freed.

    cache = dynattn.decode.WindowCache(window=1024, sinks=4)
    model.generate(**prompt, past_key_values=cache)

The first forward, over the prompt, is dense; then the cache is cut, and decoding reads what is left.
"""

from dynattn.decode.full import FullCache
from dynattn.decode.spatten import SpAttenCache
from dynattn.decode.window import WindowCache

__all__ = ["FullCache", "SpAttenCache", "WindowCache"]
