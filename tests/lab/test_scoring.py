"""Texts that a tokenizer does not know are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.scoring import check_known, prepare
from dynattn.lab.tasks.perplexity import Perplexity
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.texts import Text, read


def test_a_tokenizer_that_does_not_know_the_texts_is_refused(tiny_encoder: Path, texts: Path):
    pretrained = load(str(tiny_encoder))
    known = read(texts)
    assert prepare(Retrieval(items=4, tokens=64, queries=2, texts=known), pretrained).labels
    strange = tuple(Text(text.title, text.body.replace("moon", "Mond").replace("river", "Fluss")) for text in known)
    with pytest.raises(ValueError, match=r"retrieval: the tokenizer must know the texts: .* unknown tokens of 1\d%"):
        prepare(Retrieval(items=4, tokens=64, queries=2, texts=strange), pretrained)


def test_the_second_text_is_looked_at_too(tiny_decoder: Path, texts: Path):
    pretrained = load(str(tiny_decoder))
    task = Perplexity(items=2, tokens=64, texts=(*read(texts)[:1], Text("other", "ganz andere Worte " * 200)))
    with pytest.raises(ValueError, match="perplexity: the tokenizer must know the texts"):
        prepare(task, pretrained)
    check_known(pretrained, [], "nothing")
