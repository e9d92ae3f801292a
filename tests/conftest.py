"""Tests run side by side, one process a core (pytest-xdist), so each keeps to one thread of torch's, and so do the
processes that it starts, unless they ask for more."""

import gc
import os
from collections.abc import Generator, Iterator

import pytest
import torch
from torch._C._dynamo import guards

from tests.forking.python import fork_server, forked_python  # noqa: F401  # fixtures

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else torch.compile starts processes that import it anew
torch.set_num_threads(1)
# torch.compile empties the processor's cache to time its guards, for a log that nobody reads: a twentieth of its time.
guards.profile_guard_manager = lambda *_: 0.0


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Half a million objects are made here, which live to the end: the garbage collector would go through them again
    and again, now and in each test that makes many objects. Those it may leave a little longer, too."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Commands set threads for their process, and a sum's last bits depend on them."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
