"""The cache of what packages carry: built once, kept whole or not at all."""

from __future__ import annotations

import importlib.metadata
import subprocess
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from dynattn.lab.data import packages
from dynattn.lab.data.packages import PackageUnavailableError, folder, once
from dynattn.paths import cache_home


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNATTN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip, replaced by a folder with one wheel in it; gives the wheel's sha256."""
    wheel = tmp_path / "some_data-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_data/values.txt", "7")

    def pip(command, **_):
        if command[-1] == "some-data==1.2":
            Path(command[command.index("--dest") + 1], wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution")

    monkeypatch.setattr(packages.subprocess, "run", pip)
    return sha256(wheel.read_bytes()).hexdigest()


def build_slowly(path: Path) -> None:
    (path / "first").write_text("1")
    time.sleep(0.05)
    with (path.parent / "builds").open("a") as log:
        log.write("x")
    (path / "second").write_text("2")


def test_those_who_ask_at_once_build_once():
    """Threads stand for processes here: each call opens the lock file anew, and those locks exclude one another."""
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: once("models/one", build_slowly), range(8)))
    assert [sorted(file.name for file in path.iterdir()) for path in folders] == [["first", "second"]] * 8
    assert (cache_home() / "models" / "builds").read_text() == "x"


def test_a_failed_build_leaves_nothing():
    def fails(path: Path) -> None:
        (path / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        once("models/two", fails)
    assert not [p for p in (cache_home() / "models").iterdir() if p.is_dir()]
    assert (once("models/two", build_slowly) / "second").exists()


def test_a_wheel_is_fetched_once(index, monkeypatch):
    assert (folder("some-data", "1.2", index) / "values.txt").read_text() == "7"
    monkeypatch.setattr(packages.subprocess, "run", None)
    assert (folder("some-data", "1.2", index) / "values.txt").read_text() == "7"


def test_a_wheel_with_other_contents_is_refused(index):
    with pytest.raises(ValueError, match=f"must have sha256 {'0' * 64}: got {index}"):
        folder("some-data", "1.2", "0" * 64)
    with pytest.raises(
        PackageUnavailableError, match=r"(?s)No matching distribution.*pip install --no-deps some-data==1.3"
    ):
        folder("some-data", "1.3", index)
    assert not list(cache_home().glob("packages/*/"))


def test_an_installed_package_is_used_where_it_lies(index):
    version = importlib.metadata.version("pytest")
    assert folder("pytest", version) == Path(pytest.__file__).parent
    with pytest.raises(PackageUnavailableError):
        folder("pytest", "0.0.1")


def test_a_module_may_have_another_name(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "other_name-3-py3-none-any.whl", "w") as archive:
        archive.writestr("inner/values.txt", "8")

    def pip(command, **_):
        wheel = tmp_path / "other_name-3-py3-none-any.whl"
        Path(command[command.index("--dest") + 1], wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", pip)
    assert (folder("other-name", "3", module="inner") / "values.txt").read_text() == "8"
