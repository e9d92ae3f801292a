"""What tells this code from another state of it, so that results which one of them kept are not taken up by another."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import dynattn
from dynattn.version import VERSION

_KINDS = (".py", ".so", ".dylib", ".dll")
_ALSO = ("torch", "transformers", "tokenizers", "numpy", "scipy", "gensim", "scikit-learn", "pillow")
"""Packages that bring models, data, or the arithmetic of scores."""


@cache
def fingerprint() -> str:
    """16 hexadecimal digits of all sources of this package, its kernels, and the versions of what it computes with."""
    return digest(Path(dynattn.__file__).parent)


def digest(folder: Path) -> str:
    """The digits for the package in a folder.

    Args:
        folder: that holds its sources.
    """
    found = hashlib.sha256(VERSION.encode())
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _KINDS and path.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    for package in _ALSO:
        found.update(f"{package} {_version(package)}\0".encode())
    return found.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
