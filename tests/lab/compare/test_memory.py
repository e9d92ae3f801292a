"""Peak memory is measured for every method."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")


from dynattn.lab.compare import Comparison
from tests.lab.compare.running import METHODS


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_peak_memory_is_measured_for_every_method(found: Comparison):
    assert [entry.method for entry in found.memory] == ["sdpa", *METHODS, "eager"], found.memory_note
