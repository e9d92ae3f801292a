"""An arena of the toy task."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate")

from dynattn.lab.lra.experiment import Arena
from tests.lab.lra.toy import recipe, toy


@pytest.fixture
def arena() -> Arena:
    return Arena("toy", toy(), recipe())
