"""The earlier name of :mod:`dynattn.kv_caches`."""

from dynattn.kv_caches import FullCache, SpAttenCache, WindowCache

__all__ = ["FullCache", "SpAttenCache", "WindowCache"]
