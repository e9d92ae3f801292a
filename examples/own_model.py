"""A model of your own: dynattn.nn.Attention in a small language model, trained for a few steps, gradients included."""

import torch
from torch import Tensor, nn

from dynattn import NM
from dynattn.nn import Attention


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, kv_heads=heads // 2, method=NM(2, 4), causal=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


torch.manual_seed(0)
data = torch.tensor(list(b"what is seen twice is learnt; " * 40))
model = nn.Sequential(nn.Embedding(256, 64), Block(64, 4), Block(64, 4), nn.LayerNorm(64), nn.Linear(64, 256))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(60):
    starts = torch.randint(len(data) - 65, (8,)).tolist()
    batch = torch.stack([data[i : i + 65] for i in starts])
    loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 15 == 14:
        print(f"step {step + 1}: loss {loss.item():.3f}")

print(model[1].attention)
