"""A run that was killed goes on; one with other settings begins anew."""

from __future__ import annotations

import json

import pytest

from dynattn.lab.tune.store import Store


def test_what_was_found_is_not_sought_again(tmp_path):
    path, asked = tmp_path / "stages.json", []

    def find() -> list[float]:
        asked.append(1)
        return [1.0, 2.0]

    assert Store(path, "a").once("x", find) == [1.0, 2.0]
    again = Store(path, "a")
    assert again.resumed
    assert again.once("x", find) == [1.0, 2.0]
    assert len(asked) == 1
    other = Store(path, "b")
    assert not other.resumed
    other.once("x", find)
    assert len(asked) == 2
    assert json.loads(path.read_text())["key"] == "b"


def test_what_becomes_of_an_earlier_file_is_told(tmp_path):
    path = tmp_path / "stages.json"
    assert Store(path, "a").told is None
    Store(path, "a").put("x", 1)
    assert Store(path, "a").told == f"going on with {path}, which holds 1 results"
    assert "another version of the code: it is begun anew" in str(Store(path, "b").told)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "a", "found": []}', "nonsense"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "stages.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"stages\.json must hold"):
        Store(path, "a")
