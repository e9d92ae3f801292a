"""Dynamic sparse attention for PyTorch: keeps the attention weights that matter, chosen anew for every input."""

from dynattn import integrations, nn
from dynattn.functional import Aux, attention, explain
from dynattn.methods import (
    NM,
    BlockTopK,
    Fixed,
    Intersection,
    Method,
    PerHead,
    PerLayer,
    Random,
    Threshold,
    TopK,
    Union,
    Window,
)
from dynattn.ops.choose import Plan

__version__ = "0.1.0"
__all__ = [
    "NM",
    "Aux",
    "BlockTopK",
    "Fixed",
    "Intersection",
    "Method",
    "PerHead",
    "PerLayer",
    "Plan",
    "Random",
    "Threshold",
    "TopK",
    "Union",
    "Window",
    "attention",
    "explain",
    "integrations",
    "nn",
]
