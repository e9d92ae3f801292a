"""Training with weights that are 0: the dense weights are kept, and each step chooses anew which of them count.

    from dynattn.sparsity.training import SRSTE

    recipe = SRSTE(2, 4)
    with recipe.train(model, optimizer):
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    recipe.kept.fix(model)  # N:M weights for good

:class:`DensityLoss` is something else: a penalty that teaches activations to be 0.
"""

from dynattn.sparsity.training.base import Recipe, Stage, Training
from dynattn.sparsity.training.bdwp import BDWP
from dynattn.sparsity.training.density import DensityLoss, Measured
from dynattn.sparsity.training.progressive import Progressive
from dynattn.sparsity.training.registry import find, parse, register
from dynattn.sparsity.training.sr_ste import SRSTE

__all__ = [
    "BDWP", "SRSTE", "DensityLoss", "Measured", "Progressive", "Recipe", "Stage", "Training", "find", "parse",
    "register",
]  # fmt: skip

for _recipe in (SRSTE, Progressive, BDWP):
    register(_recipe)
