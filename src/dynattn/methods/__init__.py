"""What to keep: one frozen dataclass a file."""

from __future__ import annotations

from dynattn.methods.base import Method, MixingMethod, PairMethod, Rows
from dynattn.methods.block_bound import BlockBound
from dynattn.methods.block_mass import BlockMass
from dynattn.methods.block_skip import BlockSkip
from dynattn.methods.block_topk import BlockTopK
from dynattn.methods.clustered import Clustered
from dynattn.methods.combine import Intersection, Union
from dynattn.methods.dsa import DSA
from dynattn.methods.efficient import EfficientAttention
from dynattn.methods.fixed import Fixed
from dynattn.methods.flex_prefill import FlexPrefill
from dynattn.methods.mass import Mass
from dynattn.methods.nm import NM
from dynattn.methods.perhead import PerHead
from dynattn.methods.perlayer import PerLayer
from dynattn.methods.quest import Quest
from dynattn.methods.random_keys import Random
from dynattn.methods.registry import parse, register
from dynattn.methods.scatterbrain import Scatterbrain
from dynattn.methods.threshold import Threshold
from dynattn.methods.topk import TopK
from dynattn.methods.vertical_slash import VerticalSlash
from dynattn.methods.window import Window

__all__ = [
    "DSA",
    "NM",
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
    "MixingMethod",
    "PairMethod",
    "PerHead",
    "PerLayer",
    "Quest",
    "Random",
    "Rows",
    "Scatterbrain",
    "Threshold",
    "TopK",
    "Union",
    "VerticalSlash",
    "Window",
    "parse",
    "register",
]
