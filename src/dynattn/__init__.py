"""Dynamic sparse attention for PyTorch: keeps the attention weights that matter, chosen anew for every input."""

from dynattn import integrations, nn
from dynattn.functional import Aux, attention, explain
from dynattn.methods import DSA, NM, EfficientAttention, Method, Scatterbrain
from dynattn.ops.choose import Plan

__version__ = "0.1.0"
__all__ = [
    "DSA",
    "NM",
    "Aux",
    "EfficientAttention",
    "Method",
    "Plan",
    "Scatterbrain",
    "attention",
    "explain",
    "integrations",
    "nn",
]
