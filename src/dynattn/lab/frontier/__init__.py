"""``dynattn frontier``: compares methods, budgets, tasks and lengths on one model: what each method costs and gives.

Source of the protocol: "The Sparse Frontier", arXiv:2504.17768: the same models, tasks and lengths for all, several
budgets, prefill and decode apart, the worst task beside the mean.
"""

from dynattn.lab.frontier.results import Frontier
from dynattn.lab.frontier.sweep import Settings, sweep

__all__ = ["Frontier", "Settings", "sweep"]
