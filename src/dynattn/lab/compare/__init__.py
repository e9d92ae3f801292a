"""``dynattn compare``: a model with dense attention against the same model with each method, in one run."""

from dynattn.lab.compare.results import Comparison
from dynattn.lab.compare.run import Settings, compare

__all__ = ["Comparison", "Settings", "compare"]
