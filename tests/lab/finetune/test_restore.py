"""Restoring capitals and punctuation: what is read, what is asked, how it is judged, and that nothing leaks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.finetune.pretrained import with_head
from dynattn.lab.finetune.restore import Restore, split
from dynattn.lab.finetune.writing import CLASSES, IGNORED, Passage, encode, f1, passages
from dynattn.lab.models import Pretrained, load
from dynattn.lab.tasks.texts import Text, read

WRITTEN = "In 1,861 the U.S. won; didn't (Lincoln) say, “stop the well-known War”? Yes! Rome, Paris"
READ = "in 1,861 the u.s won didn't lincoln say stop the well-known war yes rome paris"
CLASS = "A a a A. a a A a, a a a A. A. A, A"


@pytest.fixture(scope="module")
def pretrained(tiny_encoder: Path) -> Pretrained:
    return load(str(tiny_encoder))


@pytest.fixture(scope="module")
def experiment(pretrained: Pretrained, many_texts: Path) -> Restore:
    return Restore(pretrained, 7, 64, read(many_texts))


def _passages(pretrained: Pretrained, body: str, tokens: int) -> list[Passage]:
    return passages(pretrained.processor, Text("one", body), tokens)


def test_words_lose_their_capitals_and_marks_and_keep_them_as_classes(pretrained: Pretrained):
    filler = " moon" * 200
    first = _passages(pretrained, WRITTEN + filler, 100)[0]
    assert first.read.startswith(READ + " moon")
    assert " ".join(CLASSES[written] for written in first.written[: len(READ.split())]) == CLASS
    assert set(first.written[len(READ.split()) :]) == {0}
    assert first.label == "one 1"


def test_passages_follow_each_other_and_fill_their_length(pretrained: Pretrained, many_texts: Path):
    text = read(many_texts)[0]
    cut = passages(pretrained.processor, text, 64)
    words = [word for passage in cut for word in passage.words]
    assert words == text.body.lower().replace(".", "").split()[: len(words)]
    assert len(cut) == len(text.body.split()) // 64  # a token a word, none added
    for passage in cut:
        assert len(passage.words) == len(passage.written) == 64


def test_a_word_of_several_tokens_is_asked_once_at_its_last(pretrained: Pretrained):
    """The tokenizer cuts at an apostrophe and adds nothing."""
    (found,) = _passages(pretrained, "Moon didn't, walk. Under" + " house" * 8, 8)[:1]
    given, labels = encode(pretrained.processor, [found], 8)
    tokens = [CLASSES[label] if label != IGNORED else "" for label in labels[0].tolist()]
    assert tokens == ["A", "", "", "a,", "a.", "A", "a", "a"]
    assert given["input_ids"].shape == (1, 8)
    assert set(given) >= {"input_ids", "attention_mask"}
    assert "offset_mapping" not in given


def test_padding_and_words_cut_off_are_not_asked(pretrained: Pretrained):
    short, long = Passage("s", ("moon", "river"), (1, 4)), Passage("l", ("moon",) * 9, (3,) * 9)
    given, labels = encode(pretrained.processor, [short, long], 6)
    assert labels.tolist() == [[1, 4] + [IGNORED] * 4, [3] * 6]
    assert given["attention_mask"].sum(1).tolist() == [2, 6]


@pytest.mark.parametrize(
    ("said", "there", "score"),
    [
        ("A a, a.", "A a, a.", 1.0),
        ("a a a", "A a, a.", 0.0),
        ("a a a", "a a a", 1.0),
        ("A, a a", "A. a a", 0.5),  # the capital is right, the mark is another: 2 · 1 / (2 + 2)
        ("A a a", "A a A,", 0.5),  # 2 · 1 / (1 + 3)
        ("A A A a.", "A a a a.", 2 / 3),  # 2 · 2 / (4 + 2)
    ],
)
def test_f1_counts_capitals_and_marks(said: str, there: str, score: float):
    classes = [torch.tensor([CLASSES.index(name) for name in names.split()]) for names in (said, there)]
    assert f1(*classes) == pytest.approx(score)


def test_held_out_texts_are_never_trained_on_and_items_come_from_all_of_them(experiment: Restore, many_texts: Path):
    held_out, others = ({text.title for text in part} for part in split(read(many_texts)))
    assert len(held_out) == 2
    assert not held_out & others
    titles = [label.rpartition(" ")[0] for label in experiment.labels]
    assert set(titles[:2]) == held_out
    assert sorted(titles.count(title) for title in held_out) == [3, 4]
    assert {passage.label.rpartition(" ")[0] for passage in experiment.examples} == others
    assert not {item.words for item in experiment.items} & {example.words for example in experiment.examples}
    assert "7 passages of 64 tokens from 2 texts" in experiment.summary


def test_the_loss_is_cross_entropy_over_the_words(experiment: Restore):
    torch.manual_seed(0)
    model = experiment.model("sdpa").eval()
    batch = experiment.collate(experiment.examples[:3])
    logits = model.classifier(**batch["given"]).logits
    chosen = batch["labels"] != IGNORED
    expected = -logits.log_softmax(-1)[chosen].gather(1, batch["labels"][chosen][:, None]).mean()
    assert model(**batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_scores_are_those_of_each_items_words_alone(pretrained: Pretrained, many_texts: Path):
    """Here some words are of several tokens."""
    texts = [Text(text.title, text.body.replace("moon", "moon's")) for text in read(many_texts)]
    experiment = Restore(pretrained, 7, 64, texts)
    torch.manual_seed(0)
    model = experiment.model("nm-1-2").eval()
    told = []
    scores = experiment.evaluate(model, lambda: told.append(1))
    assert len(told) == experiment.steps() == 1
    for item, score in zip(experiment.items, scores, strict=True):
        batch = experiment.collate([item])
        with torch.inference_mode():
            said = model.classifier(**batch["given"]).logits.argmax(-1)
        last = [i for i, label in enumerate(batch["labels"][0]) if label != IGNORED]
        assert len(last) == len(item.words) < 64
        assert f1(said[0, last], torch.tensor(item.written)) == score
    assert len(set(np.round(scores, 9))) > 1


def test_a_head_is_drawn_by_the_seed_on_top_of_the_pretrained_weights(pretrained: Pretrained):
    def made(seed: int):
        torch.manual_seed(seed)
        return with_head(pretrained.model, "nm-1-2", CLASSES)

    first, again, other = made(0), made(0), made(1)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    base = pretrained.model.state_dict()
    for name, weight in first.base_model.state_dict().items():
        assert torch.equal(weight, base[name])
    assert (first.config.attention_probs_dropout_prob, first.config._attn_implementation) == (0, "dynattn:nm-1-2")


def test_other_data_is_another_experiment(pretrained: Pretrained, experiment: Restore, many_texts: Path):
    texts = [Text(text.title, text.body.replace("moon", "Moon")) for text in read(many_texts)]
    identity = Restore(pretrained, 7, 64, texts).identity()
    assert identity["data"] != experiment.identity()["data"]
    assert {**identity, "data": 0} == {**experiment.identity(), "data": 0}


def test_what_it_cannot_take_is_refused(pretrained: Pretrained, many_texts: Path):
    with pytest.raises(ValueError, match="held-out texts must give at least 2 passages of 128 tokens: 1 texts give 0"):
        Restore(pretrained, 7, 500, [Text("short", "Moon.")])
    with pytest.raises(ValueError, match="must be an encoder"):
        Restore(dataclasses.replace(pretrained, kind="decoder"), 7, 64, read(many_texts))

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="must be a fast one"):
        Restore(dataclasses.replace(pretrained, processor=Slow()), 7, 64, read(many_texts))


def test_a_single_item_is_refused(pretrained: Pretrained, many_texts: Path):
    with pytest.raises(ValueError, match="items must be at least 2: got 1"):
        Restore(pretrained, 1, 64, read(many_texts))


def test_passages_without_room_for_a_word_are_refused(pretrained: Pretrained, many_texts: Path, monkeypatch):
    monkeypatch.setattr(pretrained.processor, "num_special_tokens_to_add", lambda: 2)
    with pytest.raises(ValueError, match="tokens must leave room for words: got 2, of which the tokenizer adds 2"):
        Restore(pretrained, 7, 2, read(many_texts))
