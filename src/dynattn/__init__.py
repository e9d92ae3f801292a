"""Dynamic sparse attention for PyTorch: keeps the attention weights that matter, chosen anew for every input."""

from dynattn import safe_path  # noqa: F401  # first: what is imported afterwards may lie in the current directory too

# isort: split
from dynattn import integrations, nn
from dynattn.backends import Plan
from dynattn.functional import Aux, attention, explain
from dynattn.methods import (
    DSA,
    NM,
    BlockBound,
    BlockMass,
    BlockSkip,
    BlockTopK,
    Clustered,
    EfficientAttention,
    Fixed,
    FlexPrefill,
    Intersection,
    Mass,
    Method,
    PerHead,
    PerLayer,
    Quest,
    Random,
    Scatterbrain,
    Threshold,
    TopK,
    Union,
    VerticalSlash,
    Window,
)
from dynattn.varlen import varlen_attention
from dynattn.version import VERSION

__version__ = VERSION
__all__ = [
    "DSA",
    "NM",
    "Aux",
    "BlockBound",
    "BlockMass",
    "BlockSkip",
    "BlockTopK",
    "Clustered",
    "EfficientAttention",
    "Fixed",
    "FlexPrefill",
    "Intersection",
    "Mass",
    "Method",
    "PerHead",
    "PerLayer",
    "Plan",
    "Quest",
    "Random",
    "Scatterbrain",
    "Threshold",
    "TopK",
    "Union",
    "VerticalSlash",
    "Window",
    "attention",
    "explain",
    "integrations",
    "nn",
    "varlen_attention",
]
