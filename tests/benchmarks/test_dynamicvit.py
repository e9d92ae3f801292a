"""benchmarks/dynamicvit.py on a tiny model: every arm once, resumed where it stopped, and the page's tables."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from dynattn.integrations.transformers import register  # noqa: E402
from dynattn.lab.models import Pretrained  # noqa: E402
from dynattn.lab.tasks.base import Outcome, Prepared, Task  # noqa: E402
from dynattn.pruning import Predictors  # noqa: E402

FOLDER = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True)
class Sums(Task):
    """Sum of the features; an item is a picture."""

    pixels: int = 28

    name: ClassVar[str] = "sums"
    metric: ClassVar[str] = "sum"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, pretrained):
        pixels = torch.randn(5, 1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
        return Prepared(tuple("abcde"), 5, (), 50, "five pictures of noise", pixels)

    @torch.inference_mode()
    def evaluate(self, pretrained, data, advance):
        states = [pretrained.model(pixels).last_hidden_state.flatten().numpy() for pixels in data.payload]
        return Outcome(np.array([float(state[:100].sum()) for state in states]), np.stack(states))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, Pretrained]:
    """The script with a tiny model, and predictors where a training would have put them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module("dynamicvit")
    monkeypatch.setattr(script, "RESULT", tmp_path / "results" / "dynamicvit.json")
    monkeypatch.setattr(script, "SHAPES", ((28, 1), (56, 2)))
    monkeypatch.setattr(script, "SECONDS", 0.01)
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=12, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=4
    )
    model = transformers.Dinov2Model(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(10)
    Predictors(16).save(script.predictors(tmp_path, script.RATIO))
    register()
    return script, Pretrained("tiny", model, None, "vision", "a tiny one")


def test_every_arm_is_measured_once(tiny: tuple[Any, Pretrained], tmp_path: Path):
    script, pretrained = tiny
    found = script.begin(tmp_path, pretrained)
    first = script.measure_quality(found, tmp_path, pretrained, Sums(), script.ARMS[:3])
    assert [row.arm for row in first.quality[0].arms] == ["dense 1 sdpa", "dense 1 nm-1-2", "random 0.9 sdpa"]
    again = script.begin(tmp_path, pretrained)
    assert again == first
    whole = script.measure_quality(again, tmp_path, pretrained, Sums(), script.ARMS)
    assert [row.arm for row in whole.quality[0].arms] == [arm.name for arm in script.ARMS]
    assert len({tuple(row.saliency.scores) for row in whole.quality[0].arms}) == len(
        script.ARMS
    )  # no arm ran as another
    assert whole.quality[0].arms[0].class_token == pytest.approx([1.0] * 5)
    assert whole.quality[0].arms[0].saliency.difference is None
    closeness = {row.arm: float(np.mean(row.features)) for row in whole.quality[0].arms}
    for chooser in ("random", "untrained", "trained"):
        assert closeness[f"{chooser} 0.9 sdpa"] > closeness[f"{chooser} 0.5 sdpa"]


def test_work_and_times(tiny: tuple[Any, Pretrained], tmp_path: Path):
    script, pretrained = tiny
    found = script.measure_work(script.begin(tmp_path, pretrained), tmp_path, pretrained)
    assert [(row.pixels, row.ratio) for row in found.work] == [(p, r) for p in (28, 56) for r in (1.0, 0.9, 0.7, 0.5)]
    dense, *pruned = found.work[:4]
    assert dense.tokens == [50] * 12
    assert pruned[1].tokens == [50] * 3 + [1 + 34] * 3 + [1 + 24] * 3 + [1 + 16] * 3
    matrices, attention, patches = 4 * 16**2 + 2 * 16 * 32, 2 * 50 * 16, 49 * 16 * 3 * 4**2
    assert dense.flops == 2 * (12 * 50 * (matrices + attention) + patches)
    assert dense.flops > pruned[0].flops > pruned[1].flops > pruned[2].flops
    found = script.measure_times(found, tmp_path, pretrained, "wall")
    assert [(times.pixels, times.batch) for times in found.times] == [(28, 1), (56, 2)]
    names = [row.method for row in found.times[0].rows]
    assert names == [arm.name for arm in script.ARMS if arm.chooser in ("dense", "trained")]
    assert pretrained.model.config._attn_implementation in ("sdpa", "dynattn:nm-1-2")


def test_the_page_is_written_from_the_record(tiny: tuple[Any, Pretrained], tmp_path: Path):
    script, pretrained = tiny
    found = script.measure_quality(script.begin(tmp_path, pretrained), tmp_path, pretrained, Sums(), script.ARMS[:4])
    found = script.measure_times(script.measure_work(found, tmp_path, pretrained), tmp_path, pretrained, "cpu")
    text = importlib.import_module("dynamicvit_table").tables(found)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert [row[:3] for row in rows[2:6]] == [
        ["dense", "1", "sdpa"], ["dense", "1", "nm-1-2"], ["random", "0.9", "sdpa"], ["random", "0.7", "sdpa"],
    ]  # fmt: skip
    assert float(rows[4][3]) == pytest.approx(found.quality[0].arms[2].saliency.score, abs=6e-4)
    saved = 1 - found.work[1].flops / found.work[0].flops
    assert next(row for row in rows if row[:2] == ["28", "0.9"])[4] == f"{saved:.0%}"
    assert text.count("CPU time of a forward") == 2
    assert sum("DynamicViT, ρ = 0.5" in row for row in rows) == 4
