"""States of the code are told apart."""

from __future__ import annotations

from dynattn.lab.sources import digest, fingerprint


def test_any_change_of_a_source_or_a_kernel_is_told(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "inside" / "kernels.so").write_bytes(b"1")
    (tmp_path / "notes.txt").write_text("of no account")
    seen = [digest(tmp_path)]
    (tmp_path / "notes.txt").write_text("others")
    assert digest(tmp_path) == seen[0]
    (tmp_path / "a.py").write_text("x = 2")
    seen.append(digest(tmp_path))
    (tmp_path / "inside" / "kernels.so").write_bytes(b"2")
    seen.append(digest(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    seen.append(digest(tmp_path))
    assert len(set(seen)) == len(seen)


def test_versions_of_packages_are_part_of_it(tmp_path, monkeypatch):
    before = digest(tmp_path)
    monkeypatch.setattr("dynattn.lab.sources.version", lambda package: "0")
    assert digest(tmp_path) != before


def test_the_fingerprint_is_short_and_the_same_each_time():
    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 16
