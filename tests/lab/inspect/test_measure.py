import math
import re
from pathlib import Path

import pytest
import torch

import dynattn
from dynattn import NM, theory
from dynattn.integrations.transformers import Call
from dynattn.lab.inspect.measure import choice, maps, measure, scores

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from dynattn.lab import inspect as inspecting  # noqa: E402
from dynattn.lab.inspect.sections import page  # noqa: E402
from dynattn.lab.inspect.subject import from_image, from_text  # noqa: E402
from dynattn.lab.inspect.terminal import summary  # noqa: E402
from dynattn.lab.models import Pretrained  # noqa: E402


def gaussian_call(sigma, length=256, heads=2, kv_heads=1, causal=False, attn_mask=None, seed=0):
    """A call whose scores are nearly independent draws of N(0, σ²): random keys of many dimensions, scaled."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, h, length, 128, generator=generator) for h in (heads, kv_heads, kv_heads))
    return Call(3, torch.nn.Identity(), query, key, value, NM(1, 1), attn_mask, causal, sigma / 128**0.5)


class Words:
    """A tokenizer: a word's number is its length."""

    model_max_length = 64

    def __call__(self, text, truncation=False, max_length=None, **_):
        self.words = text.split()[:max_length] if truncation else text.split()
        ids = torch.tensor([[len(word) for word in self.words]], dtype=torch.long)
        return {"input_ids": ids if _.get("return_tensors") else ids[0].tolist()}

    def convert_ids_to_tokens(self, ids):
        return [f"▁{word}" for word in self.words[: len(ids)]]


def tiny(kind):
    torch.manual_seed(0)
    common = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "decoder":
        config = transformers.LlamaConfig(**common, intermediate_size=64, num_key_value_heads=2)
        model = transformers.LlamaForCausalLM(config)
    elif kind == "encoder":
        model = transformers.BertModel(transformers.BertConfig(**common, intermediate_size=64))
    else:
        model = transformers.Dinov2Model(
            transformers.Dinov2Config(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
            )
        )
    processor = Words()
    if kind == "vision":
        from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

        processor = BitImageProcessorPil(
            size={"height": 56, "width": 56}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
        )
    for module in model.modules():  # scores of some spread, so that there is something to choose
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= 8
    model.eval().set_attn_implementation("sdpa")
    return Pretrained(f"tiny {kind}", model, processor, kind, f"a tiny {kind}")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", [NM(2, 4), NM(1, 2, window=16, sinks=2), NM(3, 8)])
def test_gaussian_scores_meet_the_theory(method, causal):
    heads, within = measure(gaussian_call(1.5, causal=causal), method)
    assert within
    for head in heads:
        assert head.sigma == pytest.approx(1.5, rel=0.06)
        assert head.kept_mass == pytest.approx(head.predicted, abs=0.015)
        assert head.shuffled == pytest.approx(head.predicted, abs=0.015)
        assert causal or head.random == pytest.approx(head.density, abs=0.015)
        assert head.top_k > head.kept_mass > head.random
        assert method.n / method.m <= head.worst_row < head.kept_mass


def test_figures_are_those_of_the_attention_call():
    mask = torch.ones(1, 1, 1, 96, dtype=torch.bool)
    mask[..., :7] = False  # padded on the left
    call = gaussian_call(1.0, length=96, heads=4, kv_heads=2, attn_mask=mask)
    out, aux = dynattn.attention(
        call.query, call.key, call.value, NM(2, 4), attn_mask=mask, scale=call.scale, return_aux=True
    )
    heads, _ = measure(call, NM(2, 4))
    for head in heads:
        found = maps(call, NM(2, 4), head.head)
        assert head.layer == 3
        assert head.kept_mass == pytest.approx(float(aux.kept_mass[0, head.head].mean()), abs=1e-5)
        assert head.kept_mass == pytest.approx(float((found.dense * found.kept).sum(-1).mean()), abs=1e-5)
        assert head.density == pytest.approx(float(found.kept.sum()) / (96 * 89), abs=1e-6)
        assert torch.allclose(found.sparse @ call.value[0, head.head // 2], out[0, head.head], atol=1e-5)
        assert float(head.keys.received.sum()) == pytest.approx(96, rel=1e-5)
        assert float(head.keys.lost.sum()) == pytest.approx(96 * (1 - head.kept_mass), rel=1e-4)
        assert head.keys.kept_by[:7].tolist() == [0.0] * 7
        assert head.random == pytest.approx(head.density, abs=0.05)


def test_neighbours_that_compete_lose_and_shuffling_shows_it():
    """Keys in pairs of equals: 1:2 keeps exactly half of them, in another order more."""
    call = gaussian_call(2.0)
    key = call.key[:, :, ::2].repeat_interleave(2, dim=2)
    heads, _ = measure(call._replace(key=key), NM(1, 2))
    for head in heads:
        assert head.kept_mass == pytest.approx(0.5, abs=1e-4)
        assert head.shuffled == pytest.approx(head.predicted, abs=0.03)
        assert head.predicted > 0.85


def test_scores_of_a_masked_causal_call():
    mask = torch.zeros(1, 2, 5, 9)
    mask[0, 1, 2, 3] = -math.inf
    query, key, value = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 9, 4), torch.randn(1, 2, 9, 4)
    call = Call(0, torch.nn.Identity(), query, key, value, NM(1, 1), mask, True, None)
    s = scores(call, 1)
    assert s.shape == (5, 9)
    assert (s == -math.inf).nonzero().tolist() == [
        [0, 5], [0, 6], [0, 7], [0, 8], [1, 6], [1, 7], [1, 8], [2, 3], [2, 7], [2, 8], [3, 8],
    ]  # fmt: skip
    assert torch.allclose(s[4], call.query[0, 1, 4] @ call.key[0, 1].T / 2)
    assert choice(s, NM(1, 2)).sum(-1).tolist() == [3, 3, 4, 4, 5]


@pytest.mark.parametrize(("kind", "words"), [("encoder", 5), ("decoder", 60)])
def test_text_page(kind, words):
    pretrained = tiny(kind)
    subject = from_text(pretrained, "a <b>bold</b> $word " * words, "Some text", tokens=3 * words)
    found = inspecting.inspect(pretrained, subject, NM(1, 2, sinks=1))
    assert [(h.layer, h.head) for h in found.heads] == [(i, j) for i in (0, 1) for j in range(4)]
    assert found.bound_holds
    assert 0 < found.output_error < 2
    assert (found.same_next_token is None) == (kind == "encoder")
    assert [s.reason for s in found.shown] == ["the lowest kept mass", "the highest kept mass"]
    assert found.shown[0].head.kept_mass == min(h.kept_mass for h in found.heads)
    assert pretrained.model.config._attn_implementation == "sdpa"
    html = page(found)
    assert_self_contained(html)
    assert f"{found.mean('kept_mass'):.3f}" in html
    assert f"Some text, {min(3 * words, 64)} tokens" + (" (cut)" if words == 60 else "") in html
    assert len(summary(found).rows) == 3


def test_image_page(tmp_path):
    from PIL import Image

    path = tmp_path / "ramp.png"
    Image.linear_gradient("L").save(path)
    pretrained = tiny("vision")
    subject = from_image(pretrained, path)
    assert subject.grid == (4, 4)
    assert subject.prefix == 1
    assert subject.image is not None
    assert subject.image[:, :, 0].mean(1).tolist() == pytest.approx([i / 55 for i in range(56)], abs=0.03)
    html = page(inspecting.inspect(pretrained, subject, NM(2, 4), layer=1, head=2))
    assert_self_contained(html)
    assert "Layer 1, head 2: as asked" in html
    assert "on the image" in html


def assert_self_contained(html):
    assert html.startswith("<!doctype html>")
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
    assert "<b>bold" not in html


def test_dense_keeps_all():
    pretrained = tiny("encoder")
    found = inspecting.inspect(pretrained, from_text(pretrained, "one two three four five", "Text", 9), NM(4, 4))
    assert found.mean("kept_mass") == pytest.approx(1, abs=1e-6)
    assert found.output_error == pytest.approx(0, abs=1e-5)
    assert_self_contained(page(found))


def test_choosing_heads_and_what_is_refused():
    pretrained = tiny("encoder")
    subject = from_text(pretrained, "one two three four five six seven", "Text", 9)
    found = inspecting.inspect(pretrained, subject, NM(1, 2), layer=1)
    assert {s.head.layer for s in found.shown} == {1}
    with pytest.raises(ValueError, match="layers go from 0 to 1, heads from 0 to 3"):
        inspecting.inspect(pretrained, subject, NM(1, 2), layer=2)
    with pytest.raises(ValueError, match="--image needs a vision model"):
        from_image(pretrained, None)
    with pytest.raises(ValueError, match="a text needs a text model"):
        from_text(tiny("vision"), "text", "Text", 9)
    with pytest.raises(ValueError, match="at least one token"):
        from_text(pretrained, "", "Text", 9)


def test_expected_mass_averages_over_causal_rows():
    heads, _ = measure(gaussian_call(1.0, length=24, causal=True), NM(1, 4))
    expected = theory.kept_mass(NM(1, 4), heads[0].sigma, torch.arange(1, 25)).mean()
    assert heads[0].predicted == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.model
def test_the_default_of_the_command(tmp_path):
    typer_testing = pytest.importorskip("typer.testing")
    import typer

    from dynattn.cli.inspect import inspect

    app = typer.Typer()
    app.command()(inspect)
    target = tmp_path / "pages" / "page.html"
    result = typer_testing.CliRunner().invoke(app, ["--output", str(target)])
    assert result.exit_code == 0, result.output
    assert "What nm-2-4 keeps" in result.output
    html = target.read_text(encoding="utf-8")
    assert_self_contained(html)
    assert "highlands" in html
    wrong = typer_testing.CliRunner().invoke(app, ["--method", "nm-5-4", "--output", str(target)])
    assert wrong.exit_code == 2


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_text_without_words_is_refused_before_the_model_is_loaded(text: str, tmp_path: Path):
    from dynattn.lab.inspect.command import Settings, _read

    (tmp_path / "text.txt").write_text(text)
    for settings in (Settings(text=text), Settings(file=tmp_path / "text.txt")):
        with pytest.raises(ValueError, match="inspect: the text must have words: got none"):
            _read(settings)
