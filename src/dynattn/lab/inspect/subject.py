"""The text or image that is inspected, as the model's inputs and with a label for each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from dynattn.lab.data.packages import folder
from dynattn.lab.data.plaintext import shown
from dynattn.lab.models import Kind, Pretrained
from dynattn.lab.scoring import check_known
from dynattn.lab.tasks.embedding import longest

if TYPE_CHECKING:
    import numpy as np

_PASSAGE = ("gensim", "4.4.0")


@dataclass(frozen=True)
class Subject:
    """A text or an image, ready for the model.

    Attributes:
        title: what it is, in a few words.
        inputs: keyword arguments of the model, a batch of one.
        labels: one for each token, in order.
        image: (height, width, 3) as the model sees it, between 0 and 1; None for a text.
        grid: rows and columns of the patches; None for a text.
    """

    title: str
    inputs: Mapping[str, Tensor]
    labels: tuple[str, ...]
    image: np.ndarray | None = None
    grid: tuple[int, int] | None = None

    @property
    def prefix(self) -> int:
        """Tokens before the first patch (class token, registers)."""
        return len(self.labels) - self.grid[0] * self.grid[1] if self.grid else 0


def refuse_text(model: str, kind: Kind) -> NoReturn:
    """Raise the ValueError of a text for a model that reads none."""
    raise ValueError(
        f"inspect: a text needs a text model: {model} is of kind {kind}; "
        + ("pass --image" if kind == "vision" else "use minilm, smollm2 or dinov2")
    )


def refuse_image(model: str, kind: Kind) -> NoReturn:
    """Raise the ValueError of an image for a model that sees none."""
    raise ValueError(f"inspect: --image needs a vision model: {model} is of kind {kind}; use --model dinov2")


def read_picture(path: Path) -> Any:
    """The image in a file, in colours, as Pillow has it.

    Args:
        path: the path of the file.

    Raises:
        ValueError: the file cannot be read, is no image or is damaged.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "it is in no format that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(
            f"inspect: {shown(path)} must be an image: {reason}; give a PNG or JPEG file that other programs open"
        ) from error


def from_text(pretrained: Pretrained, text: str | None, title: str, tokens: int) -> Subject:
    """A text for an encoder or a decoder.

    Args:
        pretrained: the model and its tokenizer.
        text: what to read; None for a news article that the package gensim carries.
        title: what it is, in a few words.
        tokens: cut after so many.

    Returns:
        The subject; its title says whether the text was cut.

    Raises:
        ValueError: the model reads no text, or the text has no token.
    """
    if pretrained.kind not in ("encoder", "decoder"):
        refuse_text(pretrained.name, pretrained.kind)
    text = _passage() if text is None else text
    tokenizer = pretrained.processor
    tokens = longest(pretrained, tokens)
    check_known(pretrained, [text], "inspect")
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=tokens)
    ids = inputs["input_ids"][0].tolist()
    if not ids:
        raise ValueError("inspect: the text must have at least one token: got none; pass a longer one")
    title += f", {len(ids)} tokens"
    if len(tokenizer(text)["input_ids"]) > len(ids):
        title += " (cut)"
    return Subject(title, dict(inputs), tuple(map(_readable, tokenizer.convert_ids_to_tokens(ids))))


def from_image(pretrained: Pretrained, path: Path | None) -> Subject:
    """An image for a vision model.

    Args:
        pretrained: the model and its image processor.
        path: the file; None for a photograph that the package matplotlib carries.

    Returns:
        The subject.

    Raises:
        ValueError: the model reads no images, or cuts them into something else than one grid of patches.
    """
    if pretrained.kind != "vision":
        refuse_image(pretrained.name, pretrained.kind)
    if path is None:
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    inputs = pretrained.processor(images=read_picture(path), return_tensors="pt")
    pixels = inputs["pixel_values"]
    patch = getattr(pretrained.model.config, "patch_size", None)
    if not isinstance(patch, int):
        raise ValueError(f"inspect: a vision model must cut images into square patches: {pretrained.name} does not")
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    labels = tuple(f"row {i // columns}, column {i % columns}" for i in range(rows * columns))
    prefix = ("[CLS]", *(f"[REG{i}]" for i in range(getattr(pretrained.model.config, "num_register_tokens", 0))))
    title = f"{path.name}, {pixels.shape[-1]} × {pixels.shape[-2]} pixels, {rows} × {columns} patches"
    image = _as_seen(pixels[0], pretrained.processor)
    return Subject(title, {"pixel_values": pixels}, (*prefix, *labels), image, (rows, columns))


def _passage() -> str:
    """The first article of the Lee corpus: 300 news stories by the Australian Broadcasting Corporation."""
    corpus = folder(*_PASSAGE) / "test" / "test_data" / "lee_background.cor"
    return corpus.read_text(encoding="utf-8").splitlines()[0].strip()


def _readable(token: str) -> str:
    """A token without its tokenizer's marks for spaces and line ends; "##" is kept, it says that a word goes on."""
    return token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "⏎").strip() or "␣"


def _as_seen(pixels: Tensor, processor: Any) -> np.ndarray:
    """(3, height, width) as normalised for the model, back to colours."""
    mean, deviation = (
        torch.tensor(getattr(processor, field, None) or default, device="cpu").view(-1, 1, 1)
        for field, default in (("image_mean", [0.0] * 3), ("image_std", [1.0] * 3))
    )
    return (pixels * deviation + mean).clamp(0, 1).permute(1, 2, 0).numpy()
