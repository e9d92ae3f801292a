"""sentence-transformers without padding: embeddings are those with it, and what would differ is refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

st = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from sentence_transformers.base.modules.transformer import Transformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling  # noqa: E402

from dynattn import TopK  # noqa: E402
from dynattn.integrations.sentence_transformers import unpad  # noqa: E402
from dynattn.integrations.transformers import observing  # noqa: E402

WORDS = [f"w{number}" for number in range(40)]
TEXTS = [" ".join(WORDS[start : start + length]) for start, length in ((0, 3), (5, 30), (2, 1), (9, 17), (30, 9))]
SIZES = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip


def config(kind: str):
    if kind == "roberta":
        return transformers.RobertaConfig(**SIZES, pad_token_id=1)
    if kind == "modernbert":
        return transformers.ModernBertConfig(
            **SIZES, pad_token_id=1, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, local_attention=8
        )
    if kind == "qwen3":
        return transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, pad_token_id=1)
    if kind == "mpnet":
        return transformers.MPNetConfig(**SIZES, pad_token_id=1)
    if kind == "convbert":
        return transformers.ConvBertConfig(**SIZES, pad_token_id=1, embedding_size=32)
    return transformers.BertConfig(**SIZES, pad_token_id=1)


def encoder(kind: str, folder: Path, pooling: Any = "mean"):
    """A model with random weights, and a tokenizer of forty words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=60
    )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config(kind))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    module = Transformer(str(folder))
    return st.SentenceTransformer(modules=[module, Pooling(32, pooling), Normalize()], device="cpu").eval()


def embed(model) -> torch.Tensor:
    return model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "qwen3"])
def test_embeddings_are_those_with_padding(kind, pooling, tmp_path):
    model = encoder(kind, tmp_path, pooling)
    padded = embed(model)
    unpad(model)
    lengths = []
    with observing(lambda call: lengths.append(call.query.shape[2])):
        torch.testing.assert_close(embed(model), padded, rtol=1e-4, atol=1e-5)
    assert set(lengths) == {3, 30, 1, 17, 9}  # each text by itself, and nothing is padding


def test_a_method_keeps_what_it_keeps_of_each_text_alone(tmp_path):
    model = encoder("bert", tmp_path)
    dense = embed(model)
    unpad(model, TopK(4))
    together = embed(model)
    assert not torch.allclose(together, dense)
    alone = torch.cat([model.encode([text], convert_to_tensor=True, show_progress_bar=False) for text in TEXTS])
    torch.testing.assert_close(together, alone)


def test_it_is_undone(tmp_path):
    model = encoder("bert", tmp_path)
    padded = embed(model)
    unpad(model, "nm-1-4")
    assert not torch.allclose(embed(model), padded)
    model[0].unpad_inputs = False
    model[0].auto_model.set_attn_implementation("sdpa")
    assert torch.equal(embed(model), padded)


def test_a_pickled_model_embeds_alike(tmp_path):
    model = encoder("bert", tmp_path)
    unpad(model, "nm-1-2")
    assert torch.equal(embed(pickle.loads(pickle.dumps(model))), embed(model))


def test_attention_of_its_own_is_refused_and_the_model_is_as_before(tmp_path):
    model = encoder("mpnet", tmp_path)
    padded = embed(model)
    with pytest.warns(UserWarning, match="MPNet"), pytest.raises(ValueError, match="all attention of MPNetModel must"):
        unpad(model)
    assert not model[0].can_flatten_inputs
    assert torch.equal(embed(model), padded)


def test_a_model_that_looks_across_texts_is_refused_and_is_as_before(tmp_path):
    model = encoder("bert", tmp_path)
    embeddings = model[0].auto_model.embeddings
    embeddings.register_forward_hook(lambda module, inputs, output: output + 0.1 * output.roll(1, dims=1))
    padded = embed(model)
    with pytest.raises(ValueError, match=r"BertModel gives others, off by .*looks across texts"):
        unpad(model, "nm-1-2")
    assert not model[0].can_flatten_inputs
    assert model[0].auto_model.config._attn_implementation == "sdpa"
    assert torch.equal(embed(model), padded)


def test_bad_input_gets_a_clear_error(tmp_path):
    with pytest.raises(TypeError, match=r"must be a SentenceTransformer .*: got Linear"):
        unpad(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="use its set_attn_implementation"):
        unpad(transformers.BertModel(config("bert")))
    model = encoder("bert", tmp_path)
    with pytest.raises(ValueError, match="n must be between 1 and m"):
        unpad(model, "nm-9-4")
    assert model[0].auto_model.config._attn_implementation == "sdpa"
