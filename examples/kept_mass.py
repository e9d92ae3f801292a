"""How much of the attention a method keeps: measured, certified, and expected from theory.

python examples/kept_mass.py
"""

import torch

import dynattn
from dynattn import NM, metrics, theory

torch.manual_seed(0)
batch, heads, length, head_dim = 1, 4, 512, 64
query = torch.randn(batch, heads, length, head_dim)
key, value = torch.randn(2, batch, heads, length, head_dim)

print("σ     method   kept mass   expected   top-k would   error    certified bound")
for sigma in (0.5, 1.0, 2.0):
    scale = sigma / head_dim**0.5  # random queries and keys: scores are nearly N(0, σ²)
    dense = dynattn.attention(query, key, value, NM(1, 1), scale=scale)
    for method in (NM(1, 2), NM(2, 4), NM(1, 4)):
        out, aux = dynattn.attention(query, key, value, method, scale=scale, return_aux=True)
        certificate = metrics.certify(out, dense, aux.kept_mass, value)
        if not certificate.holds:
            raise SystemExit("an output is further off than its kept mass allows: this is a bug in dynattn")
        print(
            f"{sigma:<5} {method.name:<8} {float(aux.kept_mass.mean()):<11.3f} "
            f"{float(theory.kept_mass(method, sigma, kv_len=length)):<10.3f} "
            f"{float(theory.top_kept_mass(method.n / method.m, sigma)):<13.3f} "
            f"{float(certificate.error.mean()):<8.3f} {float(certificate.bound.mean()):.3f}"
        )
