"""DINOv2 with the right weights equals its ONNX graph."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs dynattn[transformers]")
from tests.lab.models.packaged import pretrained

pytestmark = pytest.mark.model


@torch.no_grad()
def test_dinov2_equals_its_onnx_graph():
    """Against the graph that the package holds, run in NumPy by onnx up to the end of the backbone."""
    onnx = pytest.importorskip("onnx", reason="needs dynattn[models]")
    from onnx.reference import ReferenceEvaluator

    from dynattn.lab.models.dinov2 import onnx_file

    loaded = pretrained("dinov2")
    graph = (model := onnx.load(onnx_file())).graph
    last = next(i for i, node in enumerate(graph.node) if node.name == "/backbone/layernorm/Add_1")
    end = onnx.helper.make_tensor_value_info(graph.node[last].output[0], onnx.TensorProto.FLOAT, None)
    del graph.node[last + 1 :], graph.output[:]
    graph.output.append(end)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (states,) = ReferenceEvaluator(model).run(None, {"input_image": pixels.numpy()})
    expected = torch.as_tensor(states)
    error = (loaded.model(pixels).last_hidden_state - expected).abs().max() / expected.abs().max()
    assert error < 2e-5


@torch.no_grad()
def test_dinov2_decoder_finds_the_object():
    """A bright disc on noise: its pixels are more salient than the rest."""
    from dynattn.lab.models.dinov2 import saliency_decoder

    loaded = pretrained("dinov2")
    y, x = torch.meshgrid(torch.arange(280.0), torch.arange(224.0), indexing="ij")
    disc = (y - 180) ** 2 + (x - 70) ** 2 < 35**2
    image = 0.3 + 0.05 * torch.rand(3, 280, 224, generator=torch.Generator().manual_seed(0))
    image[0][disc], image[1:, disc] = 0.95, 0.1
    pixels = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / 0.226
    tokens = loaded.model(pixels.unsqueeze(0)).last_hidden_state
    saliency = saliency_decoder()(tokens, (280, 224))
    assert saliency.shape == (1, 280, 224)
    assert 0 <= saliency.min() < saliency.max() <= 1
    assert saliency[0][disc].mean() > 2 * saliency[0][~disc].mean()
