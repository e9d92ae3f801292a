"""What to keep: one frozen dataclass a file."""

from __future__ import annotations

from dynattn.methods.base import Method, MixingMethod, PairMethod, Rows
from dynattn.methods.dsa import DSA
from dynattn.methods.efficient import EfficientAttention
from dynattn.methods.nm import NM
from dynattn.methods.registry import parse, register
from dynattn.methods.scatterbrain import Scatterbrain

__all__ = [
    "DSA",
    "NM",
    "EfficientAttention",
    "Method",
    "MixingMethod",
    "PairMethod",
    "Rows",
    "Scatterbrain",
    "parse",
    "register",
]
