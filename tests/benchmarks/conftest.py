"""Scripts of benchmarks/, loaded anew, and the tiny models and texts that tests of the laboratory run on."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.lab.conftest import many_texts, texts, tiny_decoder, tiny_encoder  # noqa: F401  # fixtures

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(FOLDER))
        for module in ("targets", name):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return importlib.import_module(name)

    return load
