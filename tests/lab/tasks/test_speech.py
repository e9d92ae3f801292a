"""Speech: the floor of a model that does not hear, and recordings by their transcription."""

from __future__ import annotations

import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from dynattn.lab.tasks import DataMissingError
from dynattn.lab.tasks.speech import Speech, _read, _unheard


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
