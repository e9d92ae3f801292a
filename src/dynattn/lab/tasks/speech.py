"""Measures how likely a speech model finds the right transcript of real recordings.

The transcript is given token by token (teacher forcing): its negative log-likelihood moves long before a word is
misheard. Recordings: Debian's pocketsphinx-testdata, from LibriVox and a game of cards.
"""

from __future__ import annotations

import re
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, final

import numpy as np
import torch
from torch import nn

from dynattn.lab.data.packages import DataMissingError
from dynattn.lab.data.plaintext import read_text
from dynattn.lab.figures import BASELINE
from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.tasks.base import Inputs, Outcome, Prepared, Task, in_dtype

_LINE = re.compile(r"<s>\s*(.*?)\s*</s> \((.*)\)")
_RATE = 16000
PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
"""What is given and not scored: the language, and that it is to be written down."""


class _Recording(NamedTuple):
    name: str
    transcript: str
    samples: np.ndarray


@final
@dataclass(frozen=True)
class Speech(Task):
    """NLL of the transcript, per token; an item is a recording.

    Args:
        items: the most recordings.
        folder: where Debian's pocketsphinx-testdata is installed.
    """

    items: int = 16
    folder: Path = Path("/usr/share/pocketsphinx/test/data")

    name: ClassVar[str] = "speech"
    kinds: ClassVar[tuple[Kind, ...]] = ("speech",)
    metric: ClassVar[str] = "NLL of the transcript, nats per token"
    higher_is_better: ClassVar[bool] = False

    def prepare(self, pretrained: Pretrained) -> Prepared:
        recordings = _read(self.folder)[: self.items]
        if not recordings:
            raise DataMissingError(
                f"speech: recordings are needed: {self.folder} has none; on Debian and Ubuntu: "
                "apt-get install pocketsphinx-testdata"
            )
        built = [self._inputs(pretrained, recording) for recording in recordings]
        seconds = sum(len(recording.samples) for recording in recordings) / _RATE
        length = built[0]["input_features"].shape[-1] // 2  # the model's second convolution has stride 2
        return Prepared(
            labels=tuple(recording.name for recording in recordings),
            steps=len(built),
            examples=tuple({**inputs, "use_cache": False} for inputs in built[:2]),
            length=length,
            summary=f"{len(built)} recordings, {seconds:.0f} s of speech, padded to {length} tokens each",
            payload=built,
            chance=_unheard(pretrained, built),
        )

    def evaluate(self, pretrained: Pretrained, data: Prepared, advance: Callable[[], None]) -> Outcome:
        scores = []
        for inputs in data.payload:
            scores.append(_nats(pretrained, inputs))
            advance()
        return Outcome(np.array(scores), None)

    def _inputs(self, pretrained: Pretrained, recording: _Recording) -> Inputs:
        sound = pretrained.processor.feature_extractor(recording.samples, sampling_rate=_RATE, return_tensors="pt")
        tokenizer = pretrained.processor.tokenizer
        text = tokenizer(" " + recording.transcript, add_special_tokens=False)["input_ids"]
        prompt = tokenizer.convert_tokens_to_ids(list(PROMPT))
        ids = torch.tensor([[*prompt, *text, tokenizer.eos_token_id]], device="cpu")
        return in_dtype(pretrained, {"input_features": sound["input_features"], "decoder_input_ids": ids})


@torch.inference_mode()
def _nats(pretrained: Pretrained, inputs: Inputs) -> float:
    """NLL of a transcript, per token."""
    ids = inputs["decoder_input_ids"]
    logits = pretrained.model(**inputs, use_cache=False).logits[0, :-1].float()
    start = len(PROMPT) - 1  # what says language and task is given, not scored
    return nn.functional.cross_entropy(logits[start:], ids[0, start + 1 :]).item()


def _unheard(pretrained: Pretrained, built: Sequence[Inputs]) -> float | None:
    """NLL of each transcript to the dense model that hears the next recording: what can be told without listening.

    None where there is one recording alone.
    """
    if len(built) < 2:
        return None
    pretrained.model.set_attn_implementation(BASELINE)
    others = zip(built, (*built[1:], built[0]), strict=True)
    strange = [{**heard, "decoder_input_ids": said["decoder_input_ids"]} for said, heard in others]
    return float(np.mean([_nats(pretrained, inputs) for inputs in strange]))


def _read(folder: Path) -> list[_Recording]:
    """Recordings (wave files of 16 kHz, one channel) that a ``*.transcription`` file in their folder names."""
    found = []
    for listing in sorted(folder.glob("*/*transcription")):
        for line in read_text(listing).split("\n"):
            match = _LINE.match(line.strip())
            path = listing.parent / f"{match.group(2)}.wav" if match else None
            if match is None or path is None or not path.exists():
                continue
            with wave.open(str(path)) as file:
                if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (_RATE, 1, 2):
                    continue
                samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            found.append(_Recording(match.group(2), match.group(1), samples.astype(np.float32) / 32768))
    return found
