"""In place of scaled_dot_product_attention: the same tensors, fewer weights, and what that costs."""

import torch
from torch.nn.functional import scaled_dot_product_attention

import dynattn
from dynattn import NM

torch.manual_seed(0)
query = torch.randn(1, 12, 1024, 64)
key, value = torch.randn(2, 1, 4, 1024, 64)  # three query heads share a key head

dense = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
for method in (NM(2, 4), NM(1, 2), NM(1, 2, window=64, sinks=4), NM(1, 1)):
    out, aux = dynattn.attention(query, key, value, method, causal=True, return_aux=True)
    error = (out - dense).norm() / dense.norm()
    print(f"{method.name:14} kept mass {aux.kept_mass.mean():.3f}  density {aux.density.mean():.3f}  error {error:.1e}")

print(dynattn.explain(query, key, value, NM(2, 4), causal=True))
