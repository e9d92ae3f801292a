"""Bounds of what a model may answer when its inputs move: through attention, sparse choices included, and whole models.

    box = verify.bounds(model, ids, at=model.tokens, radius=0.01, words=[3])["logits"]
    ε = verify.radius(model, ids, at=model.tokens, head=model.classifier[-1], labels=labels, words=[3])

A bound is sound: no tensor of the box gives anything outside of it, but for rounding. It may be far from tight; for
deep models that were not trained for it, it says nothing.
"""

from dynattn.verify import relaxations, rules  # noqa: F401  # rules are registered as they are imported
from dynattn.verify.affine import Affine, affine_rule
from dynattn.verify.attention import Bounds, attention
from dynattn.verify.box import Box, rule
from dynattn.verify.certify import bounds, margins, radius, worst_loss

__all__ = ["Affine", "Bounds", "Box", "affine_rule", "attention", "bounds", "margins", "radius", "rule", "worst_loss"]
