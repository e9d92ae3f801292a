"""A sweep of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("plotly")


from dynattn.lab.frontier import sweep
from dynattn.lab.frontier.results import Frontier
from tests.lab.frontier.running import here, settings_for, silent


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, texts: Path) -> tuple[Frontier, Path]:
    path = tmp_path_factory.mktemp("sweep") / "record.json"
    return sweep(settings_for(tiny_encoder, texts), path, silent, here), path
