"""Pages of an inspection: of a text and of a picture, whole and alone."""

import re

import pytest

from dynattn import NM

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from dynattn.lab import inspect as inspecting  # noqa: E402
from dynattn.lab.inspect.sections import page  # noqa: E402
from dynattn.lab.inspect.subject import from_image, from_text  # noqa: E402
from dynattn.lab.inspect.terminal import summary  # noqa: E402
from tests.lab.inspect.tiny import tiny  # noqa: E402


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
