"""Tiny models of real architectures, with random weights, in folders as Transformers saves them; and texts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.lab.clocks import clock  # noqa: F401  # a fixture

transformers = pytest.importorskip("transformers")

WORDS = ("moon", "river", "stone", "bright", "walks", "under", "house", "finds", "silver", "coins", "near", "mill")


def _sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(16, 30))).capitalize() + "."


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two texts of about 1800 words."""
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("texts")
    for name in ("first", "second"):
        (folder / f"{name}.txt").write_text(" ".join(_sentence(draw) for _ in range(80)))
    return folder


@pytest.fixture(scope="session")
def many_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten texts of about 1400 words: some to judge by, others to train on."""
    draw = random.Random(1)
    folder = tmp_path_factory.mktemp("many-texts")
    for number in range(10):
        (folder / f"{number}.txt").write_text(" ".join(_sentence(draw) for _ in range(60)))
    return folder


def _tokenizer(folder: Path, texts: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    trainer = trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"])
    written = [path.read_text() for path in sorted(texts.glob("*.txt"))]
    tokenizer.train_from_iterator([*written, "' s"], trainer)  # a word of several tokens is known, too
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=128
    ).save_pretrained(folder)


def _save(model, folder: Path, texts: Path) -> Path:
    model.save_pretrained(folder)
    _tokenizer(folder, texts)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128,
    )  # fmt: skip
    return _save(transformers.BertModel(config), tmp_path_factory.mktemp("tiny-bert"), texts)


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=256,
    )  # fmt: skip
    return _save(transformers.LlamaForCausalLM(config), tmp_path_factory.mktemp("tiny-llama"), texts)
