"""Methods by which layers compute fewer tokens: a pruned token is gone for good, or skips single layers.

from dynattn.pruning import SpAtten

with SpAtten(0.5).apply(model) as trace:
    output = model(**inputs)

And parts of a model that are removed for all inputs alike: :class:`dynattn.pruning.Removed`.
"""

from __future__ import annotations

from dynattn.pruning.base import Pruning, TokenMethod
from dynattn.pruning.baselines import FirstTokens, RandomTokens
from dynattn.pruning.course import Attended, Course, Decision, Seen, Start
from dynattn.pruning.dynamicvit import DynamicViT
from dynattn.pruning.engine import pruned
from dynattn.pruning.ftp import FTP
from dynattn.pruning.ltp import LTP
from dynattn.pruning.predictor import Predictors
from dynattn.pruning.registry import find, parse, register
from dynattn.pruning.router import Router
from dynattn.pruning.spatten import SpAtten
from dynattn.pruning.structure import Element, Removed
from dynattn.pruning.work import Forward, LayerWork, Trace

__all__ = [
    "FTP", "LTP", "Attended", "Course", "Decision", "DynamicViT", "Element", "FirstTokens", "Forward", "LayerWork",
    "Predictors", "Pruning", "RandomTokens", "Removed", "Router", "Seen", "SpAtten", "Start", "TokenMethod", "Trace",
    "find", "parse", "pruned",
    "register",
]  # fmt: skip

for _method in (SpAtten, LTP, RandomTokens, FirstTokens, FTP):
    register(_method)
