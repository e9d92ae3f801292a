"""Masks, caches and heads through Transformers: tiny random models, dense dynattn against ``sdpa``."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import dynattn
from dynattn import NM

transformers = pytest.importorskip("transformers", reason="needs dynattn[transformers]")

from dynattn.integrations.transformers import Call, observing, register  # noqa: E402

register("nm-1-3", "nm-1-4-w2-s1")

VOCABULARY = 97
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def tiny(name: str, **overrides) -> Any:
    """A random model with float64 weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    make = {
        "bert": lambda o: transformers.BertModel(transformers.BertConfig(**TOKENS, **SMALL, **o)),
        "llama": lambda o: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**{**TOKENS, **SMALL, "num_key_value_heads": 2, **o})
        ),
        "mistral": lambda o: transformers.MistralForCausalLM(
            transformers.MistralConfig(**TOKENS, **SMALL, num_key_value_heads=2, sliding_window=5, **o)
        ),
        "gemma2": lambda o: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**TOKENS, **SMALL, num_key_value_heads=2, head_dim=8, sliding_window=5, **o)
        ),
        "gpt2": lambda o: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64, **o)
        ),
        "gpt_oss": lambda o: transformers.GptOssForCausalLM(
            transformers.GptOssConfig(
                **TOKENS, **SMALL, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, **o
            )
        ),
        "t5": lambda o: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                **TOKENS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **o
            )
        ),
        "vit": lambda o: transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=20, patch_size=4, **o)),
        "whisper": lambda o: transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(
                **TOKENS, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8,
                max_source_positions=25, max_target_positions=40, decoder_start_token_id=1, **o,
            )
        ),
    }  # fmt: skip
    model = make[name](overrides)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    return model.double().eval()


def with_attention(model: Any, name: str) -> Any:
    """A copy of the model that attends by ``name``, so that both stay usable."""
    other = copy.deepcopy(model)
    other.set_attn_implementation(name)
    assert other.config._attn_implementation == name
    return other


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, rows: torch.Tensor | None = None) -> None:
    """Equal to float64 rounding, at the rows (batch, length) that are not padding."""
    if rows is not None:
        actual, expected = actual[rows.bool()], expected[rows.bool()]
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def text(batch: int = 3, length: int = 13, padding: str | None = None) -> dict[str, torch.Tensor]:
    """Random tokens, and a padding mask that gives each sample another length."""
    ids = torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for i in range(batch if padding else 0):
        mask[i, : 2 * i] = 0
    if padding == "right":
        mask = mask.flip(1)
    return {"input_ids": ids.where(mask.bool(), 0), "attention_mask": mask}


def feels_attention(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """The model's outputs depend on which keys are kept: the comparison would see a wrong mask."""
    with torch.no_grad():
        dense, sparse = (with_attention(model, f"dynattn:{m}")(**inputs)[0] for m in ("dense", "nm-1-3"))
    assert (dense - sparse).abs().max() > 1e-3 * dense.abs().max()


@pytest.mark.parametrize("shared_queries", [False, True])
@pytest.mark.parametrize("q_len", [1, 7])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "per key", "additive"])
@torch.no_grad()
def test_every_argument_means_what_it_means_to_sdpa(mask, biased, q_len, shared_queries):
    """The function itself against transformers' own, for each way to say what is causal."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1 if shared_queries else 3, 4, q_len, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 3, 2, 7, 8, generator=generator, dtype=torch.float64)
    allowed = torch.rand(3, 1, 1 if mask == "per key" else q_len, 7, generator=generator) < 0.6
    allowed[..., 0] = True
    attention_mask = None if mask is None else allowed
    if mask == "additive":
        attention_mask = torch.randn(allowed.shape, generator=generator, dtype=torch.float64)
        attention_mask.masked_fill_(~allowed, torch.finfo(torch.float64).min)
    bias = torch.randn(1, 4, q_len, 7, generator=generator, dtype=torch.float64) if biased else None
    for by_module, by_argument in itertools.product((None, False, True), repeat=2):
        module: Any = nn.Module()
        module.num_key_value_groups = 2
        if by_module is not None:
            module.is_causal = by_module
        arguments = (module, query, key, value, attention_mask)
        options = {"scaling": 0.7, "is_causal": by_argument, "position_bias": bias, "sliding_window": 5}
        dense = transformers.AttentionInterface()["dynattn:dense"](*arguments, **options)[0]
        assert dense.shape == (3, q_len, 4, 8)
        assert dense.is_contiguous()
        if shared_queries:  # transformers' own GQA path for one token does not share queries
            arguments = (module, query.expand(3, -1, -1, -1), key, value, attention_mask)
        assert_equal(dense, sdpa_attention_forward(*arguments, **options)[0])


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("name", ["bert", "llama", "mistral", "gpt2"])
@torch.no_grad()
def test_one_pass_equals_sdpa(name, padding):
    model, inputs = tiny(name), text(padding=padding)
    feels_attention(model, inputs)
    expected = model(**inputs)[0]
    assert_equal(with_attention(model, "dynattn:dense")(**inputs)[0], expected, inputs["attention_mask"])


@torch.no_grad()
def test_vision_model_equals_sdpa():
    model, inputs = tiny("vit"), {"pixel_values": torch.randn(2, 3, 20, 20, dtype=torch.float64)}
    feels_attention(model, inputs)
    assert_equal(with_attention(model, "dynattn:dense")(**inputs)[0], model(**inputs)[0])


@pytest.mark.parametrize("padding", [None, "left", "right"])
@torch.no_grad()
def test_position_bias_and_cross_attention_equal_sdpa(padding):
    """T5 adds a learned bias to the scores in every layer, on top of padding and causal masks."""
    model, inputs = tiny("t5"), text(padding=padding)
    target = text(length=6)["input_ids"]
    for name in ("encoder", "decoder"):
        bias = getattr(model, name).block[0].layer[0].SelfAttention.relative_attention_bias.weight
        assert bias.abs().max() > 1
    expected = model(**inputs, decoder_input_ids=target).logits
    assert_equal(with_attention(model, "dynattn:dense")(**inputs, decoder_input_ids=target).logits, expected)


@torch.no_grad()
def test_speech_model_equals_sdpa():
    model, target = tiny("whisper"), text(2, 7)["input_ids"]
    inputs = {"input_features": torch.randn(2, 8, 50, dtype=torch.float64), "decoder_input_ids": target}
    feels_attention(model, inputs)
    assert_equal(with_attention(model, "dynattn:dense")(**inputs).logits, model(**inputs).logits)


def chunks_of(model: Any, inputs: dict[str, torch.Tensor], sizes: list[int], cache) -> torch.Tensor:
    """Logits of a text fed piece by piece through a key-value cache."""
    logits, start = [], 0
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    for size in sizes:
        stop = start + size
        out = model(
            input_ids=inputs["input_ids"][:, start:stop], attention_mask=inputs["attention_mask"][:, :stop],
            position_ids=positions[:, start:stop], past_key_values=cache, use_cache=True,
        )  # fmt: skip
        logits.append(out.logits)
        start = stop
    return torch.cat(logits, dim=1)


def cache_of(kind: str, model: Any, length: int = 20):
    """A cache as generate() makes it; the static one is longer than the text."""
    if kind == "dynamic":
        return transformers.DynamicCache(config=model.config)
    return transformers.StaticCache(config=model.config, max_cache_len=length)


@pytest.mark.parametrize(
    ("method", "kind"),
    [*itertools.product(["dense", "nm-2-4", "nm-1-3", "nm-1-4-w2-s1"], ["dynamic", "static"])],
)
@pytest.mark.parametrize("sizes", [[9, 1, 1, 1, 1], [5, 4, 4], [13], [1] * 13], ids=str)
@pytest.mark.parametrize("padding", [None, "left"])
@torch.no_grad()
def test_cache_equals_one_pass(method, kind, padding, sizes):
    """Prefill, chunks and single steps keep what one pass keeps: groups lie on the cache's own axis."""
    model = with_attention(tiny("llama"), f"dynattn:{method}")
    inputs = text(padding=padding)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = model(**inputs, position_ids=positions).logits
    assert_equal(chunks_of(model, inputs, sizes, cache_of(kind, model)), expected, inputs["attention_mask"])


@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("free", [0, 1, 7])
@torch.no_grad()
def test_a_window_ends_at_the_query_in_a_compiled_static_cache(free, padding):
    """The free slots behind the query are not counted, and one graph serves all steps of one size."""
    model, inputs = with_attention(tiny("llama"), "dynattn:nm-1-4-w2-s1"), text(padding=padding)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = model(**inputs, position_ids=positions).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    actual = chunks_of(compiled, inputs, [9, 1, 1, 1, 1], cache_of("static", model, length=13 + free))
    assert_equal(actual, expected, inputs["attention_mask"])


@torch.no_grad()
def test_a_window_ends_at_the_query_where_padding_is_on_the_right():
    """The last tokens of all samples are padding: a window must not move to the last real token for it."""
    model, inputs = with_attention(tiny("llama"), "dynattn:nm-1-4-w2-s1"), text()
    inputs["attention_mask"][:, 11:] = 0
    expected = model(**inputs).logits
    actual = [chunks_of(model, inputs, [7, 6], cache_of(kind, model)) for kind in ("dynamic", "static")]
    for each in actual:
        assert_equal(each, expected, inputs["attention_mask"])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("sizes", [[9, 1, 1, 1, 1], [5, 4, 4], [13]], ids=str)
@torch.no_grad()
def test_the_models_own_sliding_window(sizes, kind):
    """The window limits the mask, and its cache drops old keys: dense equals sdpa at every step."""
    model, inputs = tiny("mistral"), text(padding="left")
    dense = with_attention(model, "dynattn:dense")
    expected = chunks_of(model, inputs, sizes, cache_of(kind, model))
    actual = chunks_of(dense, inputs, sizes, cache_of(kind, dense))
    assert_equal(actual, expected, inputs["attention_mask"])


@torch.no_grad()
def test_packed_sequences_do_not_see_each_other():
    """Position ids that start anew mark packed texts; Transformers makes the mask from them."""
    model, ids = tiny("llama"), text(1, 13)["input_ids"]
    packed = {"input_ids": ids, "position_ids": torch.cat([torch.arange(8), torch.arange(5)]).unsqueeze(0)}
    for method in ("dense", "nm-2-4"):
        other = with_attention(model, f"dynattn:{method}")
        logits = other(**packed, use_cache=False).logits
        assert_equal(logits[:, :8], other(ids[:, :8]).logits)
        if method == "dense":
            assert_equal(logits, model(**packed, use_cache=False).logits)


@torch.no_grad()
def test_custom_masks():
    """4-dimensional masks reach attention as they are: bool ones, and additive ones with the lowest number."""
    model = tiny("llama")
    dense = with_attention(model, "dynattn:dense")
    ids = text()["input_ids"]
    allowed = torch.rand(3, 1, 13, 13, generator=torch.Generator().manual_seed(2)) < 0.5
    allowed |= torch.eye(13, dtype=torch.bool)
    added = torch.zeros(3, 1, 13, 13, dtype=torch.float64).masked_fill(~allowed, torch.finfo(torch.float64).min)
    for mask in (allowed, added):
        assert_equal(dense(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_generation_equals_sdpa(name, cache):
    model, inputs = tiny(name), text(padding="left")
    options = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": cache, "disable_compile": True}
    expected = model.generate(**inputs, **options)
    assert torch.equal(with_attention(model, "dynattn:dense").generate(**inputs, **options), expected)
    sparse = with_attention(model, "dynattn:nm-2-4").generate(**inputs, **options)
    assert sparse.shape == expected.shape


def test_generation_with_cross_attention_equals_sdpa():
    model, inputs = tiny("t5"), text(padding="right")
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(**inputs, **options)
    assert torch.equal(with_attention(model, "dynattn:dense").generate(**inputs, **options), expected)


def test_beam_search_equals_sdpa():
    model, inputs = tiny("llama"), text(padding="left")
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    expected = model.generate(**inputs, **options)
    assert torch.equal(with_attention(model, "dynattn:dense").generate(**inputs, **options), expected)


def test_gradients_equal_sdpa():
    model, inputs = tiny("llama"), text(padding="right")
    dense = with_attention(model, "dynattn:dense").train()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for m in (model, dense):
        m(**inputs, labels=labels).loss.backward()
    for (name, expected), actual in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert expected.grad is not None, name
        assert_equal(actual.grad, expected.grad)


@torch.no_grad()
def test_compiled_equals_eager():
    inputs = text(padding="left")
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        model = with_attention(tiny("llama"), "dynattn:nm-2-4").to(dtype)
        expected = model(**inputs).logits
        torch._dynamo.reset()
        actual = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).logits
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_names_and_loading(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    for name in register(NM(3, 8, window=32), "nm-4-4"):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
        assert model.config._attn_implementation == name
    assert register(NM(3, 8, window=32), "nm-4-4")[:2] == ("dynattn:nm-3-8-w32", "dynattn:nm-4-4")
    with pytest.raises(ValueError, match="a method's short name"):
        register("nm-two-four")


def test_importing_changes_nothing():
    code = "import sys, dynattn.integrations.transformers; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sparse_keeps_what_the_method_says():
    """The model's output is what the definition gives on the tensors that reached attention."""
    model, calls, inputs = with_attention(tiny("llama"), "dynattn:nm-2-4"), [], text(padding="left")
    outputs = []
    handle = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    with torch.no_grad(), observing(calls.append):
        model(**inputs)
        model(**text())  # no padding, so no mask
    handle.remove()
    assert [call.layer for call in calls] == [0, 1, 0, 1]
    for call, out in zip(calls[1::2], outputs, strict=True):
        assert call.method == NM(2, 4)
        assert call.key.shape[1] == 2
        assert call.causal == (call.attn_mask is None)
        scores = call.scale * call.query @ call.key.repeat_interleave(2, 1).mT
        allowed = torch.ones(13, 13, dtype=torch.bool).tril() if call.causal else call.attn_mask
        scores = scores.masked_fill(~allowed, -torch.inf)
        groups = nn.functional.pad(scores, (0, 3), value=-torch.inf).unflatten(-1, (4, 4))
        threshold = groups.topk(2, dim=-1).values[..., -1:]
        kept = (groups >= threshold).flatten(-2)[..., :13]
        weights = scores.masked_fill(~kept, -torch.inf).softmax(-1).nan_to_num()
        expected = (weights @ call.value.repeat_interleave(2, 1)).transpose(1, 2).flatten(2)
        assert_equal(out, expected)


@torch.no_grad()
def test_observing_sees_every_call_and_ends():
    model, seen = with_attention(tiny("vit"), "dynattn:nm-1-2"), []

    def callback(call: Call) -> None:
        _, aux = dynattn.attention(
            call.query, call.key, call.value, call.method,
            attn_mask=call.attn_mask, causal=call.causal, scale=call.scale, return_aux=True,
        )  # fmt: skip
        seen.append((call.layer, aux.kept_mass.mean().item()))

    pixels = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    with observing(callback):
        model(pixels)
        model(pixels)
    model(pixels)
    assert [layer for layer, _ in seen] == [0, 1, 0, 1]
    assert all(0.5 <= mass < 1 for _, mass in seen)


@torch.no_grad()
def test_padding_masks_stay_small():
    """A mask that is the same for every query is not spread over (q_len, kv_len)."""
    model, calls = with_attention(tiny("bert"), "dynattn:nm-2-4"), []
    with observing(calls.append):
        model(**text(padding="right"))
    assert {tuple(call.attn_mask.shape) for call in calls} == {(3, 1, 1, 13)}


def test_refuses_what_it_cannot_compute():
    inputs = text()
    with pytest.raises(ValueError, match="cap the scores"):
        with_attention(tiny("gemma2"), "dynattn:dense")(**inputs)
    with pytest.raises(ValueError, match="learned sink"):
        with_attention(tiny("gpt_oss"), "dynattn:dense")(**inputs)
    with pytest.raises(ValueError, match="attention weights"):
        with_attention(tiny("llama"), "dynattn:dense")(**inputs, output_attentions=True)


def test_attention_dropout_is_drawn_in_training_alone():
    model = with_attention(tiny("llama", attention_dropout=0.5), "dynattn:nm-2-4")
    inputs = {"input_ids": torch.arange(12).view(1, 12)}
    still = model.eval()(**inputs).logits
    assert torch.equal(still, model(**inputs).logits)
    torch.manual_seed(0)
    first, second = model.train()(**inputs).logits, model(**inputs).logits
    torch.manual_seed(0)
    again = model(**inputs).logits
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, still)


def test_refuses_causality_that_nothing_places():
    """A causal layer without a mask, with more keys than queries: top-left or bottom-right?"""
    model = with_attention(tiny("llama"), "dynattn:nm-2-4").model.layers[0].self_attn
    x = torch.randn(1, 3, 32, dtype=torch.float64)
    rotary = torch.ones(1, 3, 8, dtype=torch.float64), torch.zeros(1, 3, 8, dtype=torch.float64)
    cache = transformers.DynamicCache()
    model(x, position_embeddings=rotary, attention_mask=None, past_key_values=cache)
    with pytest.raises(ValueError, match="q_len 3, kv_len 6"):
        model(x, position_embeddings=rotary, attention_mask=None, past_key_values=cache)
