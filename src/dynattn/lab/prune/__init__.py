"""``dynattn prune``: removes layers, heads and neurons of a model as long as its validation items do not suffer.

Source: AxFormer, arXiv:2010.03688 (greedy removal by accuracy); "When Layers Play the Lottery", arXiv:2301.10835 (the
order by gradient flow).
"""

from dynattn.lab.prune.results import Pruning
from dynattn.lab.prune.settings import Settings

__all__ = ["Pruning", "Settings"]
