"""Each task on tiny data, against what it must give by its definition."""

from __future__ import annotations

import gzip
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.models import load
from dynattn.lab.tasks import TASKS, DataMissingError, default, find
from dynattn.lab.tasks.embedding import embed, reciprocal_ranks
from dynattn.lab.tasks.manpages import Manpages, _parse
from dynattn.lab.tasks.manpages import _read as _pages
from dynattn.lab.tasks.passkey import Passkey
from dynattn.lab.tasks.perplexity import Perplexity
from dynattn.lab.tasks.retrieval import Retrieval
from dynattn.lab.tasks.saliency import Saliency, area_under_roc
from dynattn.lab.tasks.speech import Speech, _read, _unheard
from dynattn.lab.tasks.texts import read, sentences, wikipedia


def _nothing() -> None: ...


def test_every_task_is_found_by_its_name_and_every_kind_has_a_default():
    for name, task in TASKS.items():
        assert find(name) is task
    for kind in ("encoder", "decoder", "vision", "speech"):
        for name in default(kind, "a model"):
            assert kind in find(name).kinds
    assert default("vision", "dinov2") == ("saliency",)
    with pytest.raises(ValueError, match=r"retrieval.*'nonsense'"):
        find("nonsense")


def test_reciprocal_ranks_count_what_scores_higher_and_ties_against_the_query():
    documents = np.eye(4)
    queries = np.array([[1.0, 0, 0, 0], [0.5, 0.4, 0.3, 0], [0.1, 0.1, 0, 0]])
    assert reciprocal_ranks(queries, documents, np.array([0, 2, 0])).tolist() == [1.0, 1 / 3, 1 / 2]
    assert reciprocal_ranks(queries, documents, np.array([0, 2, 0]), cut=2).tolist() == [1.0, 0.0, 1 / 2]


def test_embed_averages_the_tokens_and_not_the_padding(tiny_encoder: Path):
    pretrained = load(str(tiny_encoder))
    texts = ["the moon", "seven silver coins near a quiet mill and the old house", "stone"]
    together = embed(pretrained, texts, 64, _nothing)
    apart = np.concatenate([embed(pretrained, [text], 64, _nothing) for text in texts])
    np.testing.assert_allclose(together, apart, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)


def test_retrieval_takes_its_queries_out_of_full_passages(tiny_encoder: Path, texts: Path):
    pretrained = load(str(tiny_encoder))
    task = Retrieval(items=4, tokens=64, queries=2, texts=read(texts))
    data = task.prepare(pretrained)
    passages, tokens = data.payload
    assert len(passages) == len(data.labels) == 4
    assert (tokens, data.length) == (64, 64)
    for passage in passages:
        assert len(passage.queries) == 2
        assert all(query not in passage.body for query in passage.queries)
        assert len(pretrained.processor(passage.body)["input_ids"]) >= 64
    outcome = task.evaluate(pretrained, data, _nothing)
    assert outcome.scores is not None
    assert outcome.scores.shape == (4,)
    # the mean over all rankings at random of 4 is 0.52; untrained embeddings still share words with their passage
    assert 0 < outcome.scores.mean() <= 1
    with pytest.raises(ValueError, match="at least 2 passages"):
        Retrieval(tokens=128, texts=read(texts)[:1], queries=25).prepare(pretrained)


def test_perplexity_of_nothing_is_refused(tiny_decoder: Path, texts: Path):
    with pytest.raises(ValueError, match="texts must have at least 2 tokens: of 1 none has"):
        Perplexity(tokens=1, texts=read(texts)).prepare(load(str(tiny_decoder)))


def test_perplexity_is_the_models_own_loss(tiny_decoder: Path, texts: Path):
    pretrained = load(str(tiny_decoder))
    task = Perplexity(items=1, tokens=100, block=33, texts=read(texts))
    data = task.prepare(pretrained)
    outcome = task.evaluate(pretrained, data, _nothing)
    (ids,) = data.payload
    assert ids.shape == (1, 100)
    assert outcome.scores is not None
    assert len(outcome.scores) == len(data.labels) == 3
    with torch.no_grad():
        loss = pretrained.model(input_ids=ids, labels=ids).loss.item()
    assert outcome.scores.mean() == pytest.approx(loss, rel=1e-5)  # 99 predictions in 3 blocks of 33


def test_passkey_hides_the_key_at_its_depth_and_scores_it_alone(tiny_decoder: Path, texts: Path):
    pretrained = load(str(tiny_decoder))
    task = Passkey(items=2, tokens=120, texts=read(texts))
    data = task.prepare(pretrained)
    assert data.labels == ("depth 10%", "depth 90%")
    needle = pretrained.processor("The secret pass key is")["input_ids"]
    found = []
    for ids, answer in data.payload:
        assert ids.shape == (1, 120)
        row = ids[0].tolist()
        found.append(next(i for i in range(120) if row[i : i + len(needle)] == needle))
        with torch.no_grad():
            logits = pretrained.model(input_ids=ids).logits[0, -answer - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, ids[0, -answer:]).item()
        scores = task.evaluate(pretrained, data, _nothing).scores
        assert scores is not None
        assert expected == pytest.approx(scores[len(found) - 1], rel=1e-5)
    assert found[0] < 20 < 70 < found[1]
    with pytest.raises(ValueError, match="leave room"):
        Passkey(items=1, tokens=10, texts=read(texts)).prepare(pretrained)


def test_wikipedia_gives_long_plain_articles():
    pytest.importorskip("gensim")
    articles = wikipedia()
    assert len(articles) > 80
    assert sum(len(article.body) > 20_000 for article in articles) > 40
    for mark in ("[[", "{{", "==", "'''"):
        assert not any(mark in article.body for article in articles)


def test_read_takes_files_of_a_folder_or_lines_of_a_file(tmp_path: Path):
    (tmp_path / "a.txt").write_text("short")
    (tmp_path / "b.md").write_text("somewhat longer")
    (tmp_path / "c.bin").write_text("not a text at all, and the longest")
    assert [text.title for text in read(tmp_path)] == ["b.md", "a.txt"]
    lines = tmp_path / "lines"
    lines.write_text("one\n\nand three\n")
    assert [tuple(text) for text in read(lines)] == [("line 3", "and three"), ("line 1", "one")]
    with pytest.raises(ValueError, match="file or a folder"):
        read(tmp_path / "missing")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="must be a text"):
        read(tmp_path / "empty")


def test_sentences_end_before_a_capital():
    assert sentences("It cost 3.50 e.g. in May. Why? Because!") == ["It cost 3.50 e.g. in May.", "Why?", "Because!"]


PAGE = r""".TH OPEN 2
.\" a comment
.SH NAME
open \- open a \fIfile\fP
.SH DESCRIPTION
The
.BR open ()
call opens
.I path
for you.
.SH SEE ALSO
.BR close (2)
"""


def test_manual_pages_are_read_as_plain_text():
    page = _parse(PAGE)
    assert page is not None
    assert (page.name, page.line) == ("open", "open a file")
    assert page.body == "The\nopen()\ncall opens\npath\nfor you."
    assert _parse(".TH X\n.SH NAME\nno dash here\n") is None


def test_manpages_find_their_page_and_say_how_to_get_them(tmp_path: Path, tiny_encoder: Path):
    pretrained = load(str(tiny_encoder))
    with pytest.raises(DataMissingError, match="apt-get install manpages"):
        Manpages(folder=tmp_path).prepare(pretrained)
    folder = _manual(tmp_path, {word: f"{word} walks" for word in ("moon", "river", "stone")})
    task = Manpages(items=3, tokens=64, folder=folder)
    data = task.prepare(pretrained)
    assert data.labels == ("moon", "river", "stone")
    outcome = task.evaluate(pretrained, data, _nothing)
    assert outcome.scores is not None
    assert outcome.scores.mean() > 0.8  # each line shares its word with its page alone


def _manual(folder: Path, lines: dict[str, str]) -> Path:
    """Manual pages by name, each with its one-line description."""
    (folder / "man2").mkdir()
    for name, line in lines.items():
        source = f".SH NAME\n{name} \\- {line}\n.SH DESCRIPTION\n" + f"{name} {name} mill\n" * 80
        with gzip.open(folder / "man2" / f"{name}.2.gz", "wt") as file:
            file.write(source)
    return folder


def test_manpages_to_train_on_are_no_items_and_answer_one_description(tmp_path: Path, tiny_encoder: Path):
    pretrained = load(str(tiny_encoder))
    lines = {word: f"{word} walks" for word in ("bright", "coins", "finds", "house", "moon", "near")}
    folder = _manual(tmp_path, lines | {"river": "moon walks", "silver": "twice", "stone": "twice"})
    task = Manpages(items=3, tokens=64, folder=folder)
    data = task.prepare(pretrained)
    assert data.labels == ("bright", "moon", "stone")
    pairs = task.pairs(pretrained, data)
    assert [pair.query for pair in pairs] == ["coins walks", "finds walks", "house walks", "near walks"]
    assert all(pair.document.startswith(pair.query.split()[0]) for pair in pairs)


def test_passages_to_train_on_are_of_texts_that_no_item_is_from(tiny_encoder: Path, many_texts: Path):
    pretrained = load(str(tiny_encoder))
    texts = read(many_texts)
    task = Retrieval(items=5, tokens=64, texts=texts)
    data = task.prepare(pretrained)
    pairs = task.pairs(pretrained, data)
    assert len(pairs) > 5
    held_out = {label.rpartition(" ")[0] for label in data.labels}
    rest = " ".join(text.body for text in texts if text.title not in held_out)
    kept = " ".join(text.body for text in texts if text.title in held_out)
    assert 0 < len(held_out) < len(texts)
    for query, document in pairs:
        assert query in rest
        assert query not in kept
        assert query not in document


def test_blocks_to_train_on_are_full_and_of_other_texts(tiny_decoder: Path, many_texts: Path):
    pretrained = load(str(tiny_decoder))
    texts = read(many_texts)
    task = Perplexity(items=2, tokens=100, texts=texts)
    blocks = task.blocks(pretrained, task.prepare(pretrained))
    whole = [pretrained.processor(text.body)["input_ids"] for text in texts[2:]]
    assert len(blocks) == sum(len(ids) // 100 for ids in whole) > 20
    assert [block.tolist() for block in blocks[:2]] == [whole[0][:100], whole[0][100:200]]


def test_area_under_roc_by_its_definition():
    draw = np.random.default_rng(0)
    scores, positive = draw.integers(0, 5, 60).astype(float), draw.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert area_under_roc(scores, positive) == pytest.approx(np.mean(pairs))


def test_saliency_pictures_hold_their_object_where_the_mask_says():
    pytest.importorskip("sklearn")
    small = Saliency(items=2, pixels=112)
    for picture, mask in small._draw():
        assert picture.shape == (112, 112, 3)
        rows, columns = np.nonzero(mask)
        assert 20 < mask.sum() < 28 * 28
        assert np.ptp(rows) < 28
        assert np.ptp(columns) < 28
    (one, _), (two, _) = small._draw()
    assert (one != two).any()
    other = SimpleNamespace(name="vit")
    with pytest.raises(ValueError, match="must be dinov2"):
        small.prepare(other)  # type: ignore[arg-type]


def test_manual_pages_of_before_utf_8_are_read_as_latin_1(tmp_path: Path):
    page = ".TH A 2\n.SH NAME\n{name} \\- says caf\u00e9\n.SH DESCRIPTION\nIt says caf\u00e9 \u00e0 la fin.\n"
    (tmp_path / "man2").mkdir()
    for name, encoding in (("new", "utf-8"), ("old", "latin-1")):
        with gzip.open(tmp_path / "man2" / f"{name}.2.gz", "wb") as file:
            file.write(page.format(name=name).encode(encoding))
    found = _pages(tmp_path)
    assert [(each.name, each.line) for each in found] == [("new", "says caf\u00e9"), ("old", "says caf\u00e9")]
    assert found[0].body == found[1].body == "It says caf\u00e9 \u00e0 la fin."


def test_chance_in_speech_is_what_the_model_says_of_a_recording_that_it_does_not_hear(tmp_path: Path):
    """A model that hears which token comes, and says so with a certainty of its own."""
    heard: list[tuple[int, int]] = []

    class Ears(SimpleNamespace):
        def set_attn_implementation(self, name):
            assert name == "sdpa"

        def __call__(self, input_features, decoder_input_ids, use_cache):
            heard.append((int(input_features), int(decoder_input_ids[0, 4])))
            logits = torch.zeros(1, decoder_input_ids.shape[1], 16)
            logits[..., int(input_features)] = 3.0
            return SimpleNamespace(logits=logits)

    built = [
        {"input_features": torch.tensor(10 + i), "decoder_input_ids": torch.tensor([[0, 1, 2, 3, 10 + i]])}
        for i in range(3)
    ]
    listening: Any = SimpleNamespace(model=Ears())
    found = _unheard(listening, built)
    assert heard == [(11, 10), (12, 11), (10, 12)]
    assert found == pytest.approx(np.log(15 + np.exp(3.0)))
    data: Any = SimpleNamespace(payload=built)
    scores = Speech().evaluate(listening, data, lambda: None).scores
    assert scores == pytest.approx(np.log(15 + np.exp(3.0)) - 3.0)
    assert _unheard(listening, built[:1]) is None


def test_speech_reads_recordings_that_a_transcription_names(tmp_path: Path):
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "test.transcription").write_text("<s> four of hearts </s> (001)\n<s> gone </s> (002)\n")
    with wave.open(str(tmp_path / "cards" / "001.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(np.array([0, 16384, -32768], np.int16).tobytes())
    (recording,) = _read(tmp_path)
    assert (recording.name, recording.transcript) == ("001", "four of hearts")
    assert recording.samples.tolist() == [0, 0.5, -1]
    with pytest.raises(DataMissingError, match="apt-get install pocketsphinx-testdata"):
        Speech(folder=tmp_path / "none").prepare(SimpleNamespace())  # type: ignore[arg-type]
