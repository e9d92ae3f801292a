"""Finding and loading the compiled library: what is wrong with it is said with the remedy."""

from __future__ import annotations

import _ctypes
from pathlib import Path

import pytest
import torch

from dynattn.kernels import cpu
from dynattn.kernels.cpu import arguments, loader


@pytest.fixture
def no_cached_library():
    caches = (loader.library, cpu.unavailable_reason, cpu.best_isa, cpu.isa_available, cpu.isa_refusal)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_a_missing_library_names_the_remedy(no_cached_library, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(loader, "_path", lambda: tmp_path / "libdynattn_cpu.so")
    assert not cpu.is_available()
    assert "pip install" in (cpu.unavailable_reason() or "")
    assert not cpu.isa_available("portable")
    with pytest.raises(ImportError, match=r"missing.*pip install"):
        cpu.best_isa()


def test_a_broken_library_names_the_remedy(no_cached_library, monkeypatch, tmp_path: Path):
    path = tmp_path / "libdynattn_cpu.so"
    path.write_bytes(b"not a library")
    monkeypatch.setattr(loader, "_path", lambda: path)
    with pytest.raises(ImportError, match=r"do not load.*pip install"):
        cpu.best_isa()


def test_a_library_of_another_version_names_the_remedy(no_cached_library, monkeypatch):
    other = [*arguments.NM_BACKWARD.fields, ("new", arguments.INT64, 1)]
    monkeypatch.setattr(loader, "NM_BACKWARD", arguments.Structure("NMBackwardArgs", other))
    with pytest.raises(ImportError, match=r"must be of this version.*pip install"):
        cpu.best_isa()
    monkeypatch.undo()
    monkeypatch.setattr(loader, "_INTERFACE", loader._INTERFACE + 1)
    with pytest.raises(ImportError, match=r"must be of this version.*pip install"):
        cpu.best_isa()
    monkeypatch.undo()
    monkeypatch.setattr(loader, "_path", lambda: Path(_ctypes.__file__))  # which has no such function
    with pytest.raises(ImportError, match=r"must be of this version"):
        cpu.best_isa()


def test_torch_lends_its_threads():
    """Where torch has brought an OpenMP runtime, the kernels run on its pool and start none of their own."""
    if "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch is built without OpenMP")
    assert loader.parallel() is not None
