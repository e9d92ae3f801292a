"""Tests that need a CUDA device; elsewhere they are skipped, and the reason is printed."""

import os
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def _end_with_the_context() -> Iterator[None]:
    """After an illegal address every later call of the process fails: no test is to fail for another one."""
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:  # another worker takes the place of this one
            os._exit(1)
        pytest.exit(f"the device gave up: {error}", returncode=1)
