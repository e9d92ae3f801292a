"""What models do when they are given dynattn's name: exact outputs, one warning, and errors that say what to do."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from logging.handlers import BufferingHandler
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import coverage, observing, register  # noqa: E402
from tests.integrations.transformers.tiny import SMALL, TOKENS, text, tiny, with_attention  # noqa: E402

register()
TEXT = {**TOKENS, **SMALL, "max_position_embeddings": 64}
WAYS = ("load", "config", "set")
CLIPTextModel, CLIPVisionModel = transformers.CLIPTextModel, transformers.CLIPVisionModel


def build(kind: str, **more: Any) -> Any:
    """A random model with attention that is far from uniform, with its own eager implementation."""
    makes = {
        "mpnet": lambda: transformers.MPNetForMaskedLM(transformers.MPNetConfig(**TEXT)),
        "bloom": lambda: transformers.BloomModel(
            transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0)
        ),
        "roformer": lambda: transformers.RoFormerModel(transformers.RoFormerConfig(**TEXT)),
        "gptj": lambda: transformers.GPTJModel(
            transformers.GPTJConfig(**TOKENS, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64)
        ),
        "gpt_neo": lambda: transformers.GPTNeoModel(
            transformers.GPTNeoConfig(
                **TOKENS, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
                window_size=4, max_position_embeddings=64,
            )
        ),
        "falcon": lambda: transformers.FalconModel(
            transformers.FalconConfig(**TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        ),
        "clap": lambda: transformers.ClapTextModel(transformers.ClapTextConfig(**TEXT)),
        "splinter": lambda: transformers.SplinterModel(transformers.SplinterConfig(**TEXT)),
        "deberta": lambda: transformers.DebertaModel(transformers.DebertaConfig(**TEXT, relative_attention=True)),
        "xlnet": lambda: transformers.XLNetModel(
            transformers.XLNetConfig(vocab_size=97, d_model=32, n_layer=2, n_head=4, d_inner=48)
        ),
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**TEXT)),
        "pegasus_x": lambda: transformers.PegasusXModel(
            transformers.PegasusXConfig(
                **TOKENS, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, block_size=8, num_global_tokens=4,
                max_position_embeddings=64, decoder_start_token_id=0,
            )
        ),
        "bigbird_pegasus": lambda: transformers.BigBirdPegasusModel(
            transformers.BigBirdPegasusConfig(
                **TOKENS, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, block_size=4,
                attention_type="original_full", max_position_embeddings=64, decoder_start_token_id=0,
            )
        ),
        "mpnet_and_bert": lambda: transformers.EncoderDecoderModel(
            encoder=transformers.MPNetModel(transformers.MPNetConfig(**TEXT)),
            decoder=transformers.BertLMHeadModel(
                transformers.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
            ),
        ),
        "bert_and_bert": lambda: transformers.EncoderDecoderModel(
            encoder=transformers.BertModel(transformers.BertConfig(**TEXT)),
            decoder=transformers.BertLMHeadModel(
                transformers.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
            ),
        ),
        "git": lambda: transformers.GitModel(
            transformers.GitConfig(**TEXT, vision_config={**SMALL, "image_size": 16, "patch_size": 8})
        ),
        "sam": lambda: transformers.SamVisionModel(
            transformers.SamVisionConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, mlp_dim=48,
                output_channels=16, window_size=2, global_attn_indexes=[1], num_pos_feats=16,
            )
        ),
        "data2vec_vision": lambda: transformers.Data2VecVisionModel(
            transformers.Data2VecVisionConfig(**SMALL, image_size=32, patch_size=8)
        ),
        "resnet": lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 16], depths=[1, 1])
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    model = makes[kind]()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)
    model = model.double().eval()
    for config in {id(one.config): one.config for one in model.modules() if hasattr(one, "config")}.values():
        config._attn_implementation_internal = "eager"
    return model


def switched(model: Any, way: str, folder: Any) -> Any:
    """The same model with ``dynattn:dense``, by one of the ways to ask for it."""
    if way == "set":
        other = copy.deepcopy(model)
        other.set_attn_implementation("dynattn:dense")
        return other
    if way == "config":
        config = copy.deepcopy(model.config)
        other = type(model)._from_config(config, attn_implementation="dynattn:dense").double().eval()
        other.load_state_dict(model.state_dict())
        return other
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, attn_implementation="dynattn:dense", dtype=torch.float32).double().eval()


def inputs_for(kind: str) -> dict[str, torch.Tensor]:
    if kind in ("sam", "data2vec_vision", "resnet"):
        pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return {"pixel_values": pixels}
    inputs = text(padding="right")
    if kind == "git":
        inputs["pixel_values"] = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    if kind.startswith(("pegasus", "bigbird", "mpnet_and", "bert_and")):
        inputs["decoder_input_ids"] = text(length=6)["input_ids"]
    return inputs


# What they do on load: nothing takes part, some modules do, or all.
NONE = (
    "mpnet", "bloom", "roformer", "gptj", "gpt_neo", "falcon", "deberta", "xlnet", "sam", "data2vec_vision", "resnet",
)  # fmt: skip
SOME = ("mpnet_and_bert", "bigbird_pegasus", "pegasus_x", "git")
ALL = ("bert", "clap", "splinter", "bert_and_bert")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [*NONE, *SOME, *ALL])
@torch.no_grad()
def test_every_kind_of_model_gives_its_own_outputs_and_says_what_takes_part(kind, way, tmp_path):
    model, inputs = build(kind), inputs_for(kind)
    expected = model(**inputs)[0]
    calls: list[Any] = []
    logging_of_transformers = transformers.utils.logging.get_logger("transformers")
    logging_of_transformers.addHandler(logged := BufferingHandler(capacity=1000))
    try:
        with warnings.catch_warnings(record=True) as caught, observing(calls.append):
            warnings.simplefilter("always")
            other = switched(model, way, tmp_path)
            actual = other(**inputs)[0]
    finally:
        logging_of_transformers.removeHandler(logged)
    rows = inputs.get("attention_mask") if not {"decoder_input_ids", "pixel_values"} & set(inputs) else None
    torch.testing.assert_close(
        *((x if rows is None else x[rows.bool()]) for x in (actual, expected)), rtol=1e-5, atol=1e-5
    )
    said = [str(one.message) for one in caught if str(one.message).startswith("dynattn:")]
    told = [record.getMessage() for record in logged.buffer]
    said += [line for line in told if "setting its attention implementation" in line]
    found = coverage(other)
    assert bool(calls) == bool(found.taking_part)
    if kind == "bert_and_bert" and way == "set":  # made of two models, whose modules keep reading their own configs
        assert len(found.elsewhere) == 2
        assert "BertSelfAttention" in said[0]
    elif kind in ALL:
        assert not said
        assert found.own == found.unknown == found.elsewhere == ()
        assert calls
    else:
        assert said
        assert len(said) == len(set(said))
    if kind in NONE:
        assert not calls
        assert not other.config._attn_implementation.startswith("dynattn")
    if kind in SOME:
        assert found.elsewhere == ()  # not even where an encoder of its own shares its decoder's config
    if kind == "mpnet_and_bert":
        assert {part.kind for part in found.own} == {"MPNetSelfAttention"}
        assert {part.kind for part in found.taking_part} == {"BertSelfAttention", "BertCrossAttention"}


@torch.no_grad()
def test_masks_are_never_left_out_for_models_without_sdpa(tmp_path):
    """CLAP's text model is bidirectional and does not say so on its modules: no mask would mean causal."""
    model = build("clap")
    assert not model._supports_sdpa
    inputs = text()
    for way in WAYS:
        calls: list[Any] = []
        with observing(calls.append):
            actual = switched(model, way, tmp_path)(**inputs)[0]
        torch.testing.assert_close(actual, model(**inputs)[0], rtol=1e-5, atol=1e-5)  # its softmax is float32
        assert calls
        assert not any(call.causal for call in calls)


@torch.no_grad()
def test_sparse_methods_see_what_an_additive_mask_forbids():
    """A share of the allowed keys is not one of all keys, padding included."""
    register("topk-0.3")
    model, inputs, calls = build("clap"), text(padding="right"), []
    other = with_attention(model, "dynattn:topk-0.3")
    with observing(calls.append):
        other(**inputs)
    mask = calls[0].attn_mask
    allowed = mask if mask.dtype == torch.bool else mask != -torch.inf
    assert torch.equal(allowed[:, 0, 0], inputs["attention_mask"].bool())


@torch.no_grad()
def test_a_wrapper_of_somebody_elses_module():
    """As Transformers' wrapper of timm's models: no module asks the interface, and the user is told."""

    class Foreign(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    class Wrapper(transformers.PreTrainedModel):
        config_class = transformers.BertConfig
        _supports_sdpa = True

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.inner = Foreign()
            self.post_init()

    said = r"changes nothing in Wrapper.*of its own \(Foreign\).*attn_implementation='sdpa'"
    with pytest.warns(UserWarning, match=said) as caught:
        model = Wrapper._from_config(transformers.BertConfig(**TEXT), attn_implementation="dynattn:dense")
    assert len(caught) == 1
    assert [part.name for part in coverage(model).own] == ["inner"]


class _Anew(transformers.PreTrainedModel):
    """As PE's models, which make configs of their parts: what a config is made of loses its implementation."""

    config_class = transformers.CLIPConfig
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        config.text_config._attn_implementation = "sdpa"
        self.text = CLIPTextModel(config.text_config)
        self.vision = CLIPVisionModel(config.vision_config)
        self.post_init()


class _FromElsewhere(transformers.PreTrainedModel):
    """Whose code does not show by its globals that it holds models."""

    config_class = transformers.CLIPConfig
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.text = transformers.CLIPTextModel(config.text_config)
        self.mixed = nn.MultiheadAttention(8, 2)
        self.post_init()


def _clip() -> Any:
    return transformers.CLIPConfig(
        text_config={**SMALL, "vocab_size": 97}, vision_config={**SMALL, "image_size": 16, "patch_size": 8}
    )


def test_parts_that_lose_the_implementation_while_they_are_built_are_named():
    with pytest.warns(UserWarning, match=r"2 of its attention modules run another.*CLIPAttention.*set_attn") as caught:
        model = _Anew._from_config(_clip(), attn_implementation="dynattn:dense")
    assert len(caught) == 1
    assert len(coverage(model).elsewhere) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_attn_implementation("dynattn:dense")
        asked = {"": "dynattn:dense", "text_config": "sdpa", "vision_config": "dynattn:dense"}
        assert len(coverage(_Anew._from_config(_clip(), attn_implementation=asked)).elsewhere) == 2
    assert not coverage(model).elsewhere


def test_models_inside_take_part_where_only_they_can():
    with pytest.warns(UserWarning, match=r"_FromElsewhere takes part .* in part: 1 of .*MultiheadAttention") as caught:
        model = _FromElsewhere._from_config(_clip(), attn_implementation="dynattn:dense")
    assert len(caught) == 1
    assert [part.kind for part in coverage(model).taking_part] == ["CLIPAttention"] * 2


@pytest.mark.parametrize("asked", ["dynattn:dense", {"": "dynattn:dense"}], ids=["name", "dictionary"])
@pytest.mark.parametrize(("kind", "module"), [("bloom", "BloomAttention"), ("mpnet", "MPNetSelfAttention")])
def test_models_whose_attention_cannot_be_set_say_so_however_they_are_asked(kind, module, asked):
    with pytest.warns(UserWarning, match=rf"dynattn: 'dynattn:dense' changes nothing.*{module}"):
        build(kind).set_attn_implementation(asked)


def test_names_that_nobody_registered_are(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="dynattn:nm-5-7")
    with torch.no_grad():
        model(**text())
    with pytest.raises(ValueError, match="a method's short name"):
        model.set_attn_implementation("dynattn:nm-two")


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
def test_a_process_that_unpickles_a_model_knows_its_method(tmp_path):
    model = with_attention(tiny("llama"), "dynattn:nm-3-5")
    inputs = text(padding="left")
    with torch.no_grad():
        torch.save((inputs, model(**inputs).logits), tmp_path / "expected.pt")
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    code = (
        "import pickle, sys, torch; model = pickle.load(open(sys.argv[1] + '/model.pickle', 'rb'));"
        "inputs, expected = torch.load(sys.argv[1] + '/expected.pt', weights_only=False);"
        "torch.testing.assert_close(model(**inputs).logits, expected)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_pickled_method_that_nobody_defines_is_named():
    from dynattn.integrations.transformers.loading import Registered

    restore, arguments = Registered("dynattn:nobodys-7", ()).__reduce__()
    with pytest.raises(ValueError, match="import the module that defines it"):
        restore(*arguments)


def test_refusals_say_what_helps():
    model, inputs = with_attention(tiny("llama"), "dynattn:dense"), text()
    with pytest.raises(ValueError, match="ignore it with every implementation"):
        model(**inputs, head_mask=torch.ones(4))
    with pytest.raises(ValueError, match=r"model.set_attn_implementation\('eager'\) before"):
        model(**inputs, output_attentions=True)
    model.set_attn_implementation("eager")
    assert model(**inputs, output_attentions=True).attentions[0] is not None


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("keep", [1, 3])
@torch.no_grad()
def test_keys_that_layers_share(keep, cache):
    """Gemma 4 cuts queries short in layers that share keys, unless it knows that it runs sdpa: masks must be whole."""
    config = _gemma_4()
    torch.manual_seed(0)
    model = transformers.Gemma4ForCausalLM(config).double().eval()
    assert any(layer.self_attn.is_kv_shared_layer for layer in model.model.layers)
    ids = text()["input_ids"]
    caches = [_cache(cache, config) for _ in range(2)]
    expected = model(ids, logits_to_keep=keep, past_key_values=caches[0]).logits
    actual = with_attention(model, "dynattn:dense")(ids, logits_to_keep=keep, past_key_values=caches[1]).logits
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def _gemma_4() -> Any:
    return transformers.Gemma4TextConfig(
        **TOKENS, **{**SMALL, "num_hidden_layers": 4}, num_key_value_heads=2, head_dim=8, global_head_dim=8,
        num_kv_shared_layers=2, sliding_window=5, vocab_size_per_layer_input=97, hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip


def _cache(kind: str, config: Any) -> Any:
    if kind == "dynamic":
        return transformers.DynamicCache(config=config)
    return transformers.StaticCache(config=config, max_cache_len=20)
