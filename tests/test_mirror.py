"""Tests stand where their sources stand: ``tests/ops/test_rows.py`` for ``ops/rows.py``, in any of the languages."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = (".py", ".cpp", ".h", ".hpp", ".cu", ".cuh")
BESIDE = {
    "test_compiled.py": "every method under torch.compile and torch.export",
    "test_devices.py": "every factory of tensors, by its source",
    "test_docs.py": "the code of the documentation",
    "test_examples.py": "the examples, as programs",
    "test_mirror.py": "this file",
    "test_training.py": "gradients, autocast, checkpoints and transforms through the public call",
    "forking/test_forking.py": "processes of the tests",
    "methods/test_own_method.py": "the example of CONTRIBUTING, through models and commands",
    "kernels/cpu/linear/test_planted_bugs.py": "bugs put into the sources",
    "verify/test_independent.py": "bounds beside those of another verifier",
    "kernels/cpu/nm/test_planted_few_bugs.py": "bugs put into the sources",
    "kernels/cpu/rows/test_planted_bugs.py": "bugs put into the sources",
    "kernels/cpu/rows/test_planted_few_bugs.py": "bugs put into the sources",
    "kernels/cpu/tiles/test_planted_bugs.py": "bugs put into the sources",
    "kernels/cuda/test_planted_bugs.py": "bugs put into the sources",
    "kernels/cuda/test_planted_backward_bugs.py": "bugs put into the sources",
    "kernels/cuda/test_planted_wgmma_backward_bugs.py": "bugs put into the sources",
}
"""Tests of no single source file, and what they are of. CONTRIBUTING names the kinds."""


def _sources(test: Path) -> list[Path]:
    """Where the source of a test may stand; ``test_init.py`` is of a folder as a whole, its ``__init__.py``."""
    folder = test.parent.relative_to(ROOT / "tests")
    name = test.stem.removeprefix("test_")
    home = ROOT if folder.parts[:1] == ("benchmarks",) else ROOT / "src" / "dynattn"
    stem = "__init__" if name == "init" else name
    return [home / folder / f"{stem}{suffix}" for suffix in SUFFIXES]


def _tests() -> list[Path]:
    """All test files but those that run on a device alone."""
    return sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "gpu" not in path.parts)


def test_every_test_stands_where_its_source_stands() -> None:
    lost = [
        str(name)
        for path in _tests()
        if (name := path.relative_to(ROOT / "tests")).as_posix() not in BESIDE
        and not any(source.exists() for source in _sources(path))
    ]
    assert not lost, f"no source of these tests: {lost}; move them, or name them in BESIDE with what they are of"


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_is_there_and_mirrors_nothing(name: str) -> None:
    path = ROOT / "tests" / name
    assert path.exists()
    assert not any(source.exists() for source in _sources(path))
