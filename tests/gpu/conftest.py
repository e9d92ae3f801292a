"""Tests that need a CUDA device; elsewhere they are skipped, and the reason is printed."""

from pathlib import Path

import pytest
import torch

from dynattn.kernels.cuda import driver


def _why_not() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none"
    return driver.unavailable_reason(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _why_not()
    if reason is not None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))
