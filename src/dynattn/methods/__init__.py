"""What to keep: one frozen dataclass a file."""

from __future__ import annotations

from dynattn.methods.base import Method, MixingMethod, PairMethod, Rows
from dynattn.methods.nm import NM
from dynattn.methods.registry import parse, register

__all__ = ["NM", "Method", "MixingMethod", "PairMethod", "Rows", "parse", "register"]
