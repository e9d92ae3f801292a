"""Removes parts of a model for all inputs alike: blocks of layers, heads, neurons.

from dynattn.pruning import Removed

Removed.of("attention-5", "heads-2-0-1").cut(model)
"""

from __future__ import annotations

from dynattn.pruning.structure.elements import Element
from dynattn.pruning.structure.flow import gradient_flow, lottery
from dynattn.pruning.structure.removed import Removed
from dynattn.pruning.structure.tree import blocks, parts

__all__ = ["Element", "Removed", "blocks", "gradient_flow", "lottery", "parts"]
