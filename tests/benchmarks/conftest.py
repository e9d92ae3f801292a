"""The tiny models and texts that tests of the laboratory run on."""

from tests.lab.conftest import many_texts, texts, tiny_decoder, tiny_encoder  # noqa: F401  # fixtures
