"""Which checkpoints count as complete, and files that are there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynattn.lab.records import write_json
from dynattn.lab.training.checkpoints import discard, discard_incomplete, last_complete, seal


def _checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "nested").mkdir(parents=True)
    (path / "weights").write_bytes(b"12345")
    (path / "nested" / "state").write_bytes(b"123")
    return path


def test_the_newest_sealed_checkpoint_counts_by_step_and_not_by_name(tmp_path: Path):
    assert last_complete(tmp_path) is None
    for step in (5, 100, 20):
        seal(_checkpoint(tmp_path, step))
    _checkpoint(tmp_path, 300)  # without a seal
    assert last_complete(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("damage", ["shorter", "missing", "more", "no seal", "half a seal"])
def test_a_damaged_checkpoint_does_not_count_and_is_discarded(tmp_path: Path, damage: str):
    seal(_checkpoint(tmp_path, 1))
    path = _checkpoint(tmp_path, 2)
    seal(path)
    if damage == "shorter":
        (path / "weights").write_bytes(b"1234")
    elif damage == "missing":
        (path / "nested" / "state").unlink()
    elif damage == "more":
        (path / "another").touch()
    elif damage == "no seal":
        (path / "complete.json").unlink()
    else:
        (path / "complete.json").write_text((path / "complete.json").read_text()[:-3])
    assert last_complete(tmp_path) == tmp_path / "checkpoint-1"
    discard_incomplete(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-1"]
    discard(tmp_path)
    assert not list(tmp_path.iterdir())


def test_json_is_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": 2, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}
