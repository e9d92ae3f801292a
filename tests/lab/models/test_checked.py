"""Folders of models that lack something: refused in one sentence, with the folder and the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from dynattn.lab import models
from dynattn.lab.models import checked, load


@pytest.fixture
def folder(tiny_encoder: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_encoder, tmp_path / "model"))


def _change(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    held = load_file(path)
    change(held)
    save_file(held, path, metadata={"format": "pt"})


def _refused(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"^load: ") as caught:
        load(str(folder))
    said = str(caught.value)
    assert str(folder) in said
    assert "\n" not in said
    return said


def test_a_whole_folder_loads(folder: Path):
    assert load(str(folder)).kind == "encoder"


def test_missing_weights_are_refused(folder: Path):
    _change(folder, lambda held: [held.pop(key) for key in list(held) if "layer.1." in key])
    assert "miss encoder.layer.1." in _refused(folder)


def test_one_missing_weight_is_refused(folder: Path):
    _change(folder, lambda held: held.pop("encoder.layer.0.attention.self.query.bias"))
    assert "miss encoder.layer.0.attention.self.query.bias; " in _refused(folder)


def test_layers_that_the_config_does_not_ask_for_are_refused(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert "hold, for no place in the model, encoder.layer.1." in _refused(folder)


def test_other_shapes_are_refused(folder: Path):
    _change(folder, lambda held: held.update({"encoder.layer.0.output.dense.weight": torch.zeros(3, 3)}))
    assert "encoder.layer.0.output.dense.weight (3, 3) for (32, 32)" in _refused(folder)


def test_a_head_too_many_and_a_pooler_too_few_are_no_harm(folder: Path):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertForMaskedLM(config).save_pretrained(folder)  # with cls.*, without pooler.*
    assert load(str(folder)).kind == "encoder"


@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_weights_that_are_cut_short_are_refused(folder: Path, content: bytes | None):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    assert "the weights in the folder" in _refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float):
    _change(folder, lambda held: held["encoder.layer.1.attention.self.query.weight"][0].fill_(value))
    assert "hold NaN or infinity in encoder.layer.1.attention.self.query.weight;" in _refused(folder)


def test_no_weights_are_refused(folder: Path):
    (folder / "model.safetensors").unlink()
    assert "no file named model.safetensors" in _refused(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "{}", '"text"', "null", "7", '{"model_type": "nonsense"}', '{"model_type": 3}']
)
def test_a_damaged_config_is_refused(folder: Path, content: str):
    (folder / "config.json").write_text(content)
    assert "config.json in the folder" in _refused(folder)


@pytest.mark.parametrize("named", ["5", '"BertModel"', '[["BertModel"]]'])
def test_architectures_of_another_type_are_refused(folder: Path, named: str):
    (folder / "config.json").write_text(f'{{"model_type": "bert", "architectures": {named}}}')
    said = _refused(folder)
    assert "architectures" in said
    assert "config.json" in said


def test_a_config_that_is_no_object_is_told_so(folder: Path):
    (folder / "config.json").write_text("null")
    assert "it holds no JSON object" in _refused(folder)


def test_no_config_is_refused(folder: Path):
    (folder / "config.json").unlink()
    assert "must hold config.json" in _refused(folder)


def test_no_tokenizer_is_refused(folder: Path):
    for path in folder.glob("*token*"):
        path.unlink()
    assert "must come with its tokenizer" in _refused(folder)


def test_no_tokenizer_of_a_decoder_is_refused(tiny_decoder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_decoder, tmp_path / "model"))  # Transformers makes none up for it, and says so
    for path in folder.glob("*token*"):
        path.unlink()
    assert "must come with its tokenizer" in _refused(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_refused(folder: Path, content: str):
    (folder / "tokenizer.json").write_text(content)
    assert "tokenizer" in _refused(folder)


def test_a_tokenizer_of_another_model_is_refused(folder: Path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"word{i}" for i in range(100)])
    tokenizer.save_pretrained(folder)
    assert "the model has 64 embeddings" in _refused(folder)


def test_code_of_a_folder_is_not_run(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "brings code of its own, which is not run" in _refused(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("name", "meant"), [("minilmm", "minilm"), ("smolm2", "smollm2"), ("Whisper", "whisper")])
def test_a_misspelt_name_is_told_without_asking_the_hub(name: str, meant: str, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection"))
    with pytest.raises(ValueError, match=f"got '{name}'.*did you mean {meant}"):
        load(name)


def test_transformers_speaks_again_after_a_load(folder: Path):
    from transformers.utils import logging

    level = logging.get_verbosity()
    load(str(folder))
    with pytest.raises(ValueError, match="x"), checked.refusals("x", "weights"):
        raise KeyError
    assert logging.get_verbosity() == level


def test_bert_is_the_same_as_transformers_loads_it(folder: Path):
    wanted = BertModel.from_pretrained(folder).state_dict()
    found = load(str(folder)).model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("dtype", models.DTYPES)
def test_weights_are_of_the_dtype_asked_for_and_positions_are_not_rounded(dtype: str, tiny_decoder: Path):
    model = models.load(str(tiny_decoder), dtype).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    with pytest.raises(ValueError, match="load: dtype must be one of float32, bfloat16, float16: got 'int8'"):
        models.load(str(tiny_decoder), "int8")
