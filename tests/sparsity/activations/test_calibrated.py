"""Settings on a disk."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")

from dynattn.sparsity import CHESS, TEAL, Calibrated, Magnitude, Sparsity, calibrate_thresholds
from tests.pruning.structure.models import inputs, make, output


@pytest.mark.parametrize("method", [TEAL(0.5), Sparsity(mlp=CHESS(0.3), qkv=TEAL(0.7))], ids=lambda one: one.name)
def test_a_setting_is_written_and_read(method, tmp_path):
    model, given = make("llama"), inputs("llama")
    setting = calibrate_thresholds(method, model, [given])
    setting.save(tmp_path / "folder" / "setting.json")
    read = Calibrated.load(tmp_path / "folder" / "setting.json")
    assert read == setting
    with setting.apply(model):
        expected = output(model, given)
    with read.apply(model):
        assert output(model, given).equal(expected)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema_version": 2, "method": "teal-0.5", "thresholds": {}}',
     '{"schema_version": 1, "method": "magnitude-0.5", "thresholds": {}}',
     '{"schema_version": 1, "method": "riddle", "thresholds": {}}',
     '{"schema_version": 1, "method": "teal-0.5", "thresholds": {"0.q": ["a"]}}',
     '{"schema_version": 1, "method": "teal-0.5", "thresholds": [1]}'],
)  # fmt: skip
def test_other_files_are_refused(text, tmp_path):
    (tmp_path / "setting.json").write_text(text)
    with pytest.raises(ValueError, match=r"Calibrated.load: .* must hold what Calibrated.save wrote"):
        Calibrated.load(tmp_path / "setting.json")


def test_only_methods_that_choose_inputs_have_thresholds(tmp_path):
    with pytest.raises(TypeError, match="Calibrated: method must be one that chooses inputs"):
        Calibrated(Magnitude(0.5), {})  # pyright: ignore[reportArgumentType]
    Calibrated(TEAL(0.5), {"0.q": (1.0,)}).save(tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["thresholds"] == {"0.q": [1.0]}
