"""An inspection of chosen layers and heads, and what is refused."""

import pytest

from dynattn import NM

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from dynattn.lab import inspect as inspecting  # noqa: E402
from dynattn.lab.inspect.subject import from_image, from_text  # noqa: E402
from tests.lab.inspect.tiny import tiny  # noqa: E402


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


def test_a_model_whose_output_is_not_finite_is_refused():
    pretrained = tiny("encoder")
    subject = from_text(pretrained, "one two three four five six seven", "Text", 9)
    pretrained.model.encoder.layer[1].attention.self.query.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="the model's output must be finite: that of tiny encoder"):
        inspecting.inspect(pretrained, subject, NM(1, 2))
