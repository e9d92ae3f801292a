"""Training with dense and with sparse attention, by the same recipe: fine-tuning, and small models from scratch.

A run is a :class:`Job` (its numbers) and an :class:`Experiment` (model, data, measure). A :class:`Study` is every
method with every seed.
"""

from dynattn.lab.training.experiment import Experiment
from dynattn.lab.training.job import Job
from dynattn.lab.training.results import Study

__all__ = ["Experiment", "Job", "Study"]
