"""Modules for people who write their own models, and the predictor that DSA trains.

self.attention = dynattn.nn.Attention(512, heads=8, kv_heads=2, method=NM(2, 4), causal=True)
x = x + self.attention(self.norm(x))
"""

from dynattn.nn.attention import Attention
from dynattn.nn.gate import GatedQuery, OutputGate, join_gated, split_gated
from dynattn.nn.multihead import MultiheadAttention
from dynattn.nn.ponet import PoNet, equal_segments
from dynattn.nn.predictor import DSAPredictor, prediction_loss

__all__ = [
    "Attention", "DSAPredictor", "GatedQuery", "MultiheadAttention", "OutputGate", "PoNet", "equal_segments",
    "join_gated", "prediction_loss", "split_gated",
]  # fmt: skip
