"""Every task has a recipe in every size."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate")

from dynattn.lab.lra.recipes import SIZES, TASKS, find
from dynattn.lab.training import Job


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_recipe_in_every_size(task, size):
    found = find(task, size)
    assert found.width % found.heads == 0
    Job("nm-2-4", 0, found.steps, found.batch, found.learning_rate, found.warmup, found.weight_decay)
