"""The whole comparison on tiny models: what it measures, what it writes, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")
pytest.importorskip("matplotlib")

import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from dynattn.cli.compare import compare as command
from dynattn.lab.compare import Comparison, Settings, compare, memory, run
from dynattn.lab.compare.document import page
from dynattn.lab.compare.kept import kept
from dynattn.lab.compare.terminal import summary
from dynattn.lab.models import load
from dynattn.lab.words import label
from dynattn.methods import NM

APP = typer.Typer()
APP.command()(command)

METHODS = ["dense", "nm-1-2", "nm-2-4-w8-s1"]
OPTIONS = ["--items", "6", "--tokens", "64", "--seconds", "0.05", "--threads", "1", "--batch", "2"]


def _silent(title: str, steps: int):
    return lambda: None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, texts: Path) -> tuple[str, Path]:
    """What the command printed, and the folder it wrote."""
    threads = torch.get_num_threads()
    output = tmp_path_factory.mktemp("reports")
    arguments = ["--model", str(tiny_encoder), "--methods", ",".join(METHODS), "--text", str(texts)]
    result = CliRunner().invoke(APP, [*arguments, *OPTIONS, "--output", str(output)], env={"COLUMNS": "200"})
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return result.output, output


@pytest.fixture(scope="module")
def found(written: tuple[str, Path]) -> Comparison:
    (path,) = written[1].glob("*.json")
    return Comparison.model_validate_json(path.read_text())


def test_the_command_prints_a_table_and_says_where_the_report_is(written: tuple[str, Path]):
    text, folder = written
    for method in METHODS:
        assert label(method) in text
    assert "retrieval" in text
    (report,) = folder.glob("*.html")
    assert report.name in text.replace("\n", "")


def test_json_round_trips_and_refuses_unknown_fields(found: Comparison):
    assert Comparison.model_validate_json(found.model_dump_json()) == found
    record = json.loads(found.model_dump_json())
    record["speed"] = 1
    with pytest.raises(ValidationError, match="speed"):
        Comparison.model_validate(record)


def test_every_method_has_every_figure(found: Comparison):
    names = ["sdpa", *METHODS]
    assert found.methods == METHODS
    (task,) = found.tasks
    throughput = found.throughput
    assert throughput is not None
    assert [result.method for result in task.results] == names
    assert all(len(result.scores) == len(task.items) == 6 for result in task.results)
    assert [row.method for row in found.latency.rows] == [*names, "eager"]
    assert [row.method for row in throughput.rows] == names
    assert [row.method for row in found.attention.rows] == names
    assert found.attention.calls == 2  # layers
    assert (found.latency.batch, throughput.batch, found.latency.length) == (1, 2, 64)
    assert [share.method for share in found.shares] == names
    assert all(0 < share.attention < share.forward for share in found.shares)
    assert found.latency.rows[0].speedup.median == 1


def test_dense_by_the_own_kernel_agrees_and_sparse_differs(found: Comparison):
    (task,) = found.tasks
    assert task.of("dense").agreement == pytest.approx(1, abs=1e-5)
    agreement = task.of("nm-1-2").agreement
    assert agreement is not None
    assert agreement < 1 - 1e-6


def test_kept_mass_is_within_its_bounds_and_density_is_measured(found: Comparison):
    assert [entry.method for entry in found.kept] == ["nm-1-2", "nm-2-4-w8-s1"]
    for entry in found.kept:
        assert len(entry.mass) == 2
        assert all(len(layer) == 2 and all(0.5 <= value <= 1 for value in layer) for layer in entry.mass)
        assert 0.5 - 1e-6 <= entry.lowest <= min(min(layer) for layer in entry.mass)
    assert found.kept[0].density == pytest.approx(0.5)
    assert found.kept[1].density > 0.55


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_peak_memory_is_measured_for_every_method(found: Comparison):
    assert [entry.method for entry in found.memory] == ["sdpa", *METHODS, "eager"], found.memory_note


def test_the_page_refers_to_nothing_outside_and_names_everything(written: tuple[str, Path], found: Comparison):
    (path,) = written[1].glob("*.html")
    text = path.read_text()
    assert "http" not in text
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", text)
    assert "@import" not in text
    assert "<script" not in text
    assert not re.search(r"url\((?!#)", text)
    for method in METHODS:
        assert label(method) in text
    for task in found.tasks:
        assert f"Quality: {task.name}" in text
    assert text.count("<svg") == 3


def test_a_decoder_is_judged_by_perplexity_and_passkey(
    tiny_decoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "_CLEAR", Path("/nonexistent"))
    settings = Settings(str(tiny_decoder), methods=("nm-1-2-w64-s4",), text=texts, items=2, tokens=100, seconds=0.05)
    found = compare(settings, _silent)
    assert [task.name for task in found.tasks] == ["perplexity", "passkey"]
    assert found.throughput is not None
    assert found.throughput.batch == found.batch == 20  # 2048 // 100
    assert found.memory == []
    assert "only Linux" in found.memory_note
    assert found.tasks[1].of("nm-1-2-w64-s4").difference is not None
    assert "too few items" in page(found)  # 2 keys


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_is_that_of_the_model_and_of_both_attentions(
    dtype: str, tiny_encoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
):
    """The process that measures memory is told as well: it would refuse inputs of another dtype, or run in float32."""
    seen = set()

    def look(function):
        def watched(*args, **kwargs):
            seen.update(x.dtype for x in args if isinstance(x, torch.Tensor) and x.is_floating_point())
            return function(*args, **kwargs)

        return watched

    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", look(sdpa))
    settings = Settings(str(tiny_encoder), ("nm-1-2",), text=texts, items=4, tokens=64, seconds=0.05, dtype=dtype)
    found = compare(settings, _silent)
    assert seen == {getattr(torch, dtype)}
    assert found.dtype == found.settings["dtype"] == dtype
    assert f"in {dtype}" in page(found)
    assert summary(found).title.endswith(f"in {dtype}")
    assert all(len(result.scores) == 4 for result in found.tasks[0].results)
    if Path("/proc/self/clear_refs").exists():
        assert [entry.method for entry in found.memory] == ["sdpa", "nm-1-2", "eager"], found.memory_note


def test_records_of_before_there_were_dtypes_are_of_float32(found: Comparison):
    record = json.loads(found.model_dump_json())
    del record["dtype"]
    assert Comparison.model_validate(record) == found
    assert found.dtype == "float32"


def test_one_item_at_once_is_timed_once(tiny_encoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_CLEAR", Path("/nonexistent"))  # spares a process
    monkeypatch.setattr(run, "_ENOUGH_TOKENS", 127)  # one text of 64 tokens
    settings = Settings(str(tiny_encoder), ("nm-1-2",), text=texts, items=2, tokens=64, seconds=0.05)
    found = compare(settings, _silent)
    assert found.throughput is None
    assert found.batch == 1
    text = page(Comparison.model_validate_json(found.model_dump_json()))
    assert "throughput" not in text
    assert "items per s" in text  # of the latency's table
    assert summary(found).columns[1] == "attention"
    assert len(summary(found).columns) == 7


def test_a_model_that_goes_past_dynattn_is_refused(tiny_encoder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch):
    pretrained = load(str(tiny_encoder))
    monkeypatch.setattr(pretrained.model, "set_attn_implementation", lambda _: None)  # as models of old style do
    monkeypatch.setattr(run, "load", lambda *_: pretrained)
    with pytest.raises(ValueError, match=r"BertModel\) ran without one call of dynattn:nm-1-2.*another model"):
        compare(Settings(str(tiny_encoder), ("nm-1-2",), text=texts, items=2, tokens=64), _silent)


def test_kept_refuses_a_model_that_does_not_call_dynattn(tiny_encoder: Path):
    pretrained = load(str(tiny_encoder))
    with pytest.raises(ValueError, match="must call dynattn"):
        kept(pretrained, NM(1, 2), [{"input_ids": torch.ones(1, 8, dtype=torch.long)}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "nm-9-4"], "n must be between 1 and m"),
        (["--methods", "topk"], "parse: name must be"),
        (["--tasks", "nonsense"], "task must be one of"),
        (["--tasks", "perplexity"], "takes a model that is decoder"),
        (["--tasks", "manpages", "--text", "TEXTS"], "takes no texts"),
        (["--text", "/nonexistent"], "must be a file or a folder"),
        (["--items", "0"], "items must be at least 1"),
        (["--seconds", "0"], "must be positive"),
        (["--dtype", "float64"], "dtype must be one of float32, bfloat16, float16: got 'float64'"),
    ],
)
def test_wrong_options_end_with_a_reason(
    arguments: list[str], message: str, tiny_encoder: Path, texts: Path, tmp_path: Path
):
    given = [str(texts) if argument == "TEXTS" else argument for argument in arguments]
    command_line = ["--model", str(tiny_encoder), *given, "--output", str(tmp_path)]
    result = CliRunner().invoke(APP, command_line, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())
    assert "Traceback" not in result.output


def test_an_unknown_model_ends_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(APP, ["--model", str(tmp_path / "none"), "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "error" in result.output
