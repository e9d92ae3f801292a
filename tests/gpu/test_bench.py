"""``dynattn bench --device cuda`` on a device: graphs, events, peers, limits."""

import pytest
from typer.testing import CliRunner

from dynattn import NM
from dynattn.cli import app
from dynattn.lab.bench import suites
from dynattn.lab.bench.cases import Workload
from dynattn.lab.bench.record import load
from dynattn.lab.bench.run import measure


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "tf32"])
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_every_function_is_right_and_timed(dtype: str, layout: str) -> None:
    workload = Workload(heads=8, kv_heads=4, q_len=384, head_dim=64, dtype=dtype, causal=True, layout=layout)  # pyright: ignore
    results = {r.function: r for r in measure(workload, [NM(1, 1), NM(1, 2), NM(3, 8)], device="cuda", rounds=2)}
    for name in ("sdpa", "unfused", "dense", "nm-1-2", "nm-3-8"):
        assert results[name].check.passed, results[name]
        timing, call = results[name].timing, results[name].call
        assert timing is not None
        assert call is not None
        assert 1e-6 < timing.median < 1
        assert call > 0.5 * timing.median  # Python and the launch are not faster than the kernel
    assert results["nm-3-8"].backend == "reference"
    if dtype in ("bfloat16", "float16"):
        assert results["nm-1-2"].backend.startswith("cuda ")


def test_training() -> None:
    workload = Workload(heads=4, q_len=512, head_dim=64, dtype="bfloat16", causal=True, training=True)
    results = {r.function: r for r in measure(workload, [NM(1, 2)], device="cuda", rounds=2)}
    assert results["nm-1-2"].check.passed, results["nm-1-2"]
    assert results["nm-1-2"].backend.startswith("cuda mma")
    assert results["nm-1-2"].timing is not None


def test_command(tmp_path, monkeypatch) -> None:
    pytest.importorskip("pydantic", reason="reading records needs pydantic")
    workload = Workload(batch=2, heads=8, q_len=512, head_dim=64, dtype="bfloat16")
    monkeypatch.setitem(suites._CUDA, "targets", [(workload, (NM(1, 2), NM(2, 4)))])
    paths = ["--output", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html")]
    result = CliRunner().invoke(app, ["bench", "--device", "cuda", "--rounds", "3", *paths])
    assert result.exit_code == 0, result.output
    record = load(tmp_path / "r.json")
    assert record.on_gpu
    assert record.roofline.flops is not None
    assert 1e13 < record.roofline.flops < 1e16
    assert 1e11 < record.roofline.bandwidth < 1e14
    assert record.machine["gpu"]["name"] in result.output
