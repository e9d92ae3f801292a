"""``dynattn:dense`` on tiny models of every kind, by the script that records it; and the script itself."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

FOLDER = Path(__file__).parents[2] / "benchmarks"

# One of each kind that was once wrong without a word, and what is true of it now.
EXPECTED = {
    "bert": "exact", "llama": "exact", "t5": "exact", "nllb-moe": "exact", "splinter": "exact",
    "clap text": "exact",
    "autoformer": "keeps its own",
    "mpnet": "keeps its own", "bloom": "keeps its own", "mpt": "keeps its own", "roformer": "keeps its own",
    "big_bird": "keeps its own", "longformer": "keeps its own", "led": "keeps its own", "speecht5": "keeps its own",
    "layoutlmv3": "keeps its own", "vilt": "keeps its own", "groupvit": "keeps its own", "imagegpt": "keeps its own",
    "deberta": "keeps its own", "xlnet": "keeps its own", "gptj": "keeps its own", "falcon": "keeps its own",
    "blip": "keeps its own", "sam_vision_model": "keeps its own",
    "pegasus_x": "partly covered", "informer": "partly covered", "git": "partly covered",
    "mpnet and bert": "partly covered",
    "gemma2": "refused", "gpt_oss": "refused",
    "mamba": "no attention",
}  # fmt: skip


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The scripts, by their names."""
    names = ("attention_watch", "model_checks", "tiny_models", "tiny_configs", "transformers_models", "forked")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        modules = {name: importlib.import_module(name) for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield modules


def _built(scripts: dict[str, ModuleType], kind: str) -> tuple[Any, list[dict[str, Any]]]:
    tiny, configs = scripts["tiny_models"], scripts["tiny_configs"]
    if kind == "clap text":
        model = tiny.tiny_model(transformers.ClapTextModel, configs.tiny_config(transformers.ClapTextConfig))
        return model, tiny.tiny_cases(model)
    if kind != "mpnet and bert":
        return tiny.found(kind)
    encoder, decoder = (
        configs.tiny_config(one) for one in (transformers.MPNetConfig, transformers.BertConfig)
    )  # fmt: skip
    pair = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, pad_token_id=1)
    model = tiny.tiny_model(transformers.EncoderDecoderModel, pair)
    return model, tiny.tiny_cases(model)


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_kind_of_model_is_right_and_says_what_takes_part(scripts, kind):
    row = scripts["model_checks"].checked(*_built(scripts, kind))
    assert row["result"] == EXPECTED[kind], row
    if row["result"] in ("exact", "partly covered"):
        assert row["ran"] > 0
    if row["result"] in ("keeps its own", "partly covered"):
        assert row["own"]
        assert "dynattn:" in row["words"]
    if row["result"] != "refused":
        assert row["matches"]


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "gemma3_text", "llama4_text"])
def test_windows_forbid_something(scripts, kind):
    """A text that a window holds whole would not show whether the window is kept."""
    config = scripts["tiny_configs"].tiny_config(transformers.CONFIG_MAPPING[kind])
    window = getattr(config, "sliding_window", None) or config.attention_chunk_size
    assert window < scripts["tiny_models"].LENGTH
    if kind == "qwen2":
        assert "sliding_attention" in config.layer_types


@pytest.mark.sweep
def test_no_model_of_transformers_is_wrong_or_silent(scripts):
    script = scripts["transformers_models"]
    script._prepare()
    rows = list(
        scripts["forked"].each(
            script.examined, script.kinds(), script._failed, jobs=os.cpu_count() or 1, seconds=script.SECONDS
        )
    )
    assert [row for row in rows if row["result"] in ("wrong", "silent")] == []
    assert sum(row["result"] != "not built" for row in rows) > 0.8 * len(rows)


def test_page_and_record_agree(scripts):
    script = scripts["transformers_models"]
    record, page = json.loads(script.RECORD.read_text()), script.PAGE.read_text()
    assert script.with_table(page, record) == page
    names = [row["model"] for row in record["models"]]
    assert len(set(names)) == len(names)
    assert {row["result"] for row in record["models"]} <= set(script.MEANING) - {"wrong", "silent"}
    if record["versions"]["transformers"] == transformers.__version__:
        assert names == [kind for kind in script.kinds() if kind in set(names)]
    changed = copy.deepcopy(record)
    changed["models"][0]["result"] = "wrong"
    assert script.with_table(page, changed) != page


def test_a_sweep_that_is_ended_leaves_page_and_record_in_agreement(scripts, tmp_path, monkeypatch):
    script = scripts["transformers_models"]
    before = json.loads(script.RECORD.read_text())
    page = tmp_path / "page.md"
    page.write_text(script.PAGE.read_text())
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(script, "RECORD", tmp_path / "models.json")
    script.RECORD.write_text(json.dumps(before))
    monkeypatch.setattr(script, "_prepare", lambda: None)

    def ended(*_: Any, **__: Any) -> Any:
        yield {**before["models"][0], "result": "refused", "words": "a: b: some words"}
        raise KeyboardInterrupt

    monkeypatch.setattr(scripts["forked"], "each", ended)
    with pytest.raises(KeyboardInterrupt):
        script.main(["--only", before["models"][0]["model"]])
    record = json.loads(script.RECORD.read_text())
    assert record["models"][0]["result"] == "refused"
    assert script.with_table(page.read_text(), record) == page.read_text()


# What the checks are there to see.


def test_a_mask_that_is_left_out_is_seen(scripts, monkeypatch):
    from dynattn.integrations.transformers import contracts

    model, cases = _built(scripts, "clap text")
    monkeypatch.setattr(contracts, "of", lambda config: contracts.Contract.SDPA)
    monkeypatch.setattr(contracts, "eager_alone", lambda config: False)
    row = scripts["model_checks"].checked(model, cases)
    assert row["result"] == "wrong", row
    assert "last_hidden_state differs" in row["words"]


@pytest.mark.parametrize("kind", ["mpnet", "mpnet and bert"])
def test_a_warning_that_is_missing_is_seen(scripts, monkeypatch, kind):
    from dynattn.integrations.transformers import loading

    built = _built(scripts, kind)
    for name in ("_warn_of_none", "_warn_of_some"):
        monkeypatch.setattr(loading, name, lambda *_: None)
    row = scripts["model_checks"].checked(*built)
    assert row["result"] == "silent", row
    assert "nothing is said of MPNetSelfAttention" in row["words"]


def test_attention_that_nobody_names_is_seen(scripts, monkeypatch):
    from dynattn.integrations.transformers import classes

    built = _built(scripts, "siglip_vision_model")
    monkeypatch.setattr(classes, "attends_itself", lambda cls: False)
    survey = sys.modules["dynattn.integrations.transformers.coverage"]
    monkeypatch.setattr(survey, "_NAMED", re.compile("nothing"))
    row = scripts["model_checks"].checked(*built)
    assert row["result"] == "silent", row
    assert "attend and are not named: MultiheadAttention" in row["words"]


def test_a_module_that_runs_without_a_call_is_seen(scripts, monkeypatch):
    model, cases = _built(scripts, "bert")
    module = type(model.encoder.layer[1].attention.self)
    forward = module.forward

    def sometimes(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if self.layer_idx:
            return hidden_states, None
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(module, "forward", sometimes)
    row = scripts["model_checks"].checked(model, cases)
    assert row["result"] == "silent", row
    assert "run without a call: BertSelfAttention" in row["words"]


def test_outputs_are_compared_where_they_are_no_padding(scripts):
    check = scripts["model_checks"].difference
    mask = torch.ones(3, 10, dtype=torch.int64)
    mask[1, :3] = 0
    right = {"state": torch.ones(3, 10, 4)}
    other = {"state": right["state"].clone()}
    assert check(right, other, {"attention_mask": mask}) is None
    other["state"][1, 2] = 7
    assert check(right, other, {"attention_mask": mask}) is None
    assert check(right, other, {}) == "state differs by 6, of 1"
    other["state"][1, 3] = torch.nan
    assert check(right, other, {"attention_mask": mask}) == "state differs by inf, of 1"
    assert "shape" in str(check(right, {"state": right["state"][:, 1:]}, {}))
    assert "other outputs" in str(check(right, {}, {}))


def _work(item: str) -> str:
    if item == "dies":
        os._exit(3)
    if item == "late":
        while True:
            pass
    if item == "sleeps":
        time.sleep(2)
    return f"{item} is done"


def _late(item: str) -> str:
    try:
        return _work(item)
    except TimeoutError as error:
        return f"{item}: {error}"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_process_that_dies_or_is_late_costs_itself_alone(scripts, jobs):
    items = ["first", "dies", "late", "sleeps", "last"]
    results = scripts["forked"].each(_late, items, lambda item, words: f"{item}: {words}", jobs=jobs, seconds=1)
    assert sorted(results) == [
        "dies: the process ended with code 3", "first is done", "last is done",
        "late: takes more than 1 s of the processor", "sleeps is done",
    ]  # fmt: skip
