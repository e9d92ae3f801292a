"""Files of results: whole or not at all, reserved first, and read with errors that name them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pydantic")

from dynattn.lab import records
from dynattn.lab.figures import Spread
from dynattn.lab.training.results import Study

_SMALL_FILES = """
import resource, sys
from pathlib import Path
from dynattn.lab import records
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
{act}
"""


def _with_small_files(act: str, path: Path) -> subprocess.CompletedProcess:
    """Run in a process whose files may hold 1000 bytes: what a full disk does, without one."""
    code = _SMALL_FILES.format(act=act)
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False, timeout=120
    )


def test_arrays_of_numbers_take_one_line_and_nothing_is_lost():
    value = {
        "scores": [0.1, -2, 1e-30, None, True], "rows": [[1, 2], [], [3]], "names": ["α", 'b"'], "empty": {},
        "none": [], "deep": [{"x": [1.5]}], "points": [{"step": 1, "value": 0.5}, {"step": 2, "value": None}],
        "spread": {"median": 1.0, "q1": 0.5, "q3": 2},
    }  # fmt: skip
    text = records.dumps(value)
    assert json.loads(text) == value
    assert ' "scores": [0.1, -2, 1e-30, null, true],\n' in text
    assert "  [1, 2],\n" in text
    assert '  "α",\n' in text
    assert '   "x": [1.5]\n' in text
    assert ' "points": [{"step": 1, "value": 0.5}, {"step": 2, "value": null}],\n' in text
    assert ' "spread": {"median": 1.0, "q1": 0.5, "q3": 2}\n' in text


def test_what_is_not_finite_comes_back(tmp_path):
    spread = Spread(median=math.nan, q1=-math.inf, q3=1.0)
    records.write_record(spread, tmp_path / "spread.json")
    found = records.read_record(Spread, tmp_path / "spread.json", "write it again")
    assert math.isnan(found.median)
    assert found.q1 == -math.inf


@pytest.mark.usefixtures("forked_python")
def test_a_disk_that_fills_leaves_the_file_before_and_nothing_else(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("before")
    done = _with_small_files("records.write_whole(Path(sys.argv[1]), 'x' * 5000)", path)
    assert f"OSError: write: {path} must be a file that can be written: File too large" in done.stderr
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["figures.json"]


@pytest.mark.usefixtures("forked_python")
def test_a_full_disk_is_noticed_before_the_work(tmp_path):
    done = _with_small_files("with records.reserve(Path(sys.argv[1])): print('worked')", tmp_path / "figures.json")
    assert "must be a file that can be written: File too large" in done.stderr
    assert done.stdout == ""
    assert os.listdir(tmp_path) == []


def test_disk_is_held_until_the_file_is_written(tmp_path):
    path = tmp_path / "figures.json"
    with records.reserve(path):
        (held,) = [entry for entry in tmp_path.iterdir() if entry.suffix != ".lock"]
        assert held.stat().st_size == records._RESERVED
        records.write_whole(path, "{}")
        assert not held.exists()
        records.write_whole(path, "{1}")
    assert path.read_text() == "{1}"


def test_reserving_leaves_the_file_that_is_there_and_sweeps_what_kills_left(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("before")
    (tmp_path / ".figures.json-12345").write_text("of a process that was killed")
    with pytest.raises(RuntimeError), records.reserve(path):
        raise RuntimeError
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["figures.json"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "there is a folder of this name"),
        ("file/figures.json", "File exists|Not a directory"),
        ("x" * 300 + ".json", "File name too long"),
        ("/dev/full", "No space left on device"),
        ("/proc/figures.json", "No such file or directory|Permission denied"),
    ],
)
def test_what_cannot_be_written_is_refused_first(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=f"must be a file that can be written: ({reason})"),
        records.reserve(tmp_path / name),
    ):
        pytest.fail("the work must not begin")


def test_links_and_devices_stay(tmp_path):
    (tmp_path / "there.json").write_text("before")
    (tmp_path / "link.json").symlink_to(tmp_path / "there.json")
    with records.reserve(tmp_path / "link.json", Path("/dev/null")):
        records.write_whole(tmp_path / "link.json", "after")
        records.write_whole(Path("/dev/null"), "after")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "there.json").read_text() == "after"
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("claim", [records.alone, records.reserve])
def test_one_at_a_time_and_a_kill_frees(tmp_path, claim):
    path = tmp_path / "figures.json"
    code = f"""
import sys, time
from pathlib import Path
from dynattn.lab import records
with records.{claim.__name__}(Path(sys.argv[1])):
    print("there", flush=True)
    time.sleep(600)
"""
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        with pytest.raises(ValueError, match=r"another is at work in .*; wait for it"), claim(path):
            pytest.fail("two at once")
    finally:
        other.kill()
        other.wait()
    with claim(path):
        pass


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"median": 1.0, "q1": 1', r"must hold JSON: it is cut short or damaged"),
        (b"", r"must hold JSON: it is cut short or damaged"),
        (b"\xff\xfe{\x00}", r"must hold JSON|must hold a Spread"),
        (b"\x80abc", r"must hold JSON"),
        (b"[" * 100_000, r"nested too deeply|must hold a Spread"),
        (b"[1, 2]", r"must hold a Spread: the whole: input should be a valid dictionary"),
        (b'{"median": 1.0, "q1": 1.0}', r"must hold a Spread: q3: field required; "),
        (b'{"median": "x", "q1": 1.0, "q3": 1.0}', r"median: input should be a valid number.*, got 'x'"),
        (b'{"median": 1, "q1": 1, "q3": 1, "q4": 1}', r"q4: extra inputs are not permitted, got 1"),
    ],
)
def test_damaged_files_are_named_with_a_remedy(tmp_path, content, reason):
    path = tmp_path / "spread.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        records.read_record(Spread, path, "delete it")
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("; delete it")
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_no_file_and_a_folder_are_named_too(tmp_path):
    with pytest.raises(
        ValueError, match=r"^read: \S+none\.json must be a file that can be read: No such file[^;]*; look again$"
    ):
        records.read_json(tmp_path / "none.json", "look again")
    with pytest.raises(ValueError, match=r"^read: \S+ must be a file that can be read: Is a directory; look again$"):
        records.read_json(tmp_path, "look again")


def test_another_version_is_said_in_place_of_what_it_brings_about(tmp_path):
    (tmp_path / "study.json").write_text('{"schema_version": 7, "arms": 3}')
    with pytest.raises(ValueError, match="it is of version 7, which this dynattn does not read; take the other"):
        records.read_record(Study, tmp_path / "study.json", "take the other")


def test_writing_needs_no_package():
    code = (
        "import sys\n"
        "for name in ('pydantic', 'rich', 'transformers', 'numpy.testing'): sys.modules[name] = None\n"
        "from dynattn.lab.records import dumps, write_json\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
