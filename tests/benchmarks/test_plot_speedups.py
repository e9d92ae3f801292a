"""Speedups are drawn on light and on dark ground."""

from __future__ import annotations

from dynattn.lab.bench.record import save
from tests.benchmarks.made_up import SECONDS, record_of


def test_plot_draws_both_grounds(script, tmp_path, monkeypatch):
    plot = script("plot_speedups")
    monkeypatch.setattr(plot, "IMAGES", tmp_path / "images")
    save(record_of("targets", SECONDS), tmp_path / "record.json")
    assert plot.main([str(tmp_path / "record.json")]) == 0
    light, dark = ((tmp_path / "images" / name).read_text() for name in ("speedups.svg", "speedups-dark.svg"))
    assert "#1f2328" in light
    assert "#e6edf3" in dark
    assert "#000000" not in dark
