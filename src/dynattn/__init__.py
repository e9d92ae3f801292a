"""Dynamic sparse attention for PyTorch: keeps the attention weights that matter, chosen anew for every input."""

from dynattn import integrations, nn
from dynattn.functional import Aux, attention, explain
from dynattn.methods import NM, Method
from dynattn.ops.choose import Plan

__version__ = "0.1.0"
__all__ = ["NM", "Aux", "Method", "Plan", "attention", "explain", "integrations", "nn"]
