"""Where the cache lies."""

from pathlib import Path

from dynattn.paths import cache_home


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("DYNATTN_CACHE", "~/elsewhere")
    assert cache_home() == Path.home() / "elsewhere"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for unset in (lambda: monkeypatch.setenv("DYNATTN_CACHE", ""), lambda: monkeypatch.delenv("DYNATTN_CACHE")):
        unset()
        assert cache_home() == tmp_path / "dynattn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_home() == Path.home() / ".cache" / "dynattn"
