"""Modules for people who write their own models.

self.attention = dynattn.nn.Attention(512, heads=8, kv_heads=2, method=NM(2, 4), causal=True)
x = x + self.attention(self.norm(x))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynattn.functional import attention
from dynattn.methods import NM, Method
from dynattn.nn.gate import Form, OutputGate, split_gated


class Attention(nn.Module):
    """Multi-head self-attention or cross-attention, with its four projections.

        out = W_o · concat_h softmax(scale · Q_h K_hᵀ + bias, over the pairs that ``method`` keeps) V_h

    With a ``gate`` each head's output is multiplied by what :class:`~dynattn.nn.OutputGate` makes of ``x`` before W_o.

    The batch comes first. Rotary embeddings, caches and the like belong between the projections and the attention:
    call :func:`dynattn.attention` yourself for those.

    Args:
        embed_dim: width of the input and of the output.
        heads: query heads.
        kv_heads: key and value heads, a divisor of ``heads`` (grouped queries); None for as many as ``heads``.
        head_dim: width of a head; None for ``embed_dim / heads``.
        kv_dim: width of ``context``; None for ``embed_dim``.
        method: what to keep. The attribute may be set anew at any time; it holds no weights.
        causal: forbid keys after the query, aligned bottom-right; see :func:`dynattn.attention`.
        dropout: probability with which a kept weight is dropped in ``train()`` mode, drawn from PyTorch's generator.
        bias: whether the projections have biases.
        gate: ``headwise`` or ``elementwise`` for a model that is trained with a gate from the start; None for no gate.
            :meth:`add_gate` adds one to a module that is trained already.
        device: the device of the weights.
        dtype: the dtype of the weights.

    Raises:
        ValueError: the sizes do not divide, ``dropout`` is not a probability below 1, or there is no such gate.

    Source: arXiv:1706.03762; grouped queries, arXiv:2305.13245; gates, arXiv:2505.06708.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        kv_dim: int | None = None,
        method: Method = NM(2, 4),
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        gate: Form | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        kv_dim = embed_dim if kv_dim is None else kv_dim
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"Attention: heads must be a multiple of kv_heads: got {heads}, {kv_heads}")
        if head_dim is None and embed_dim % heads:
            raise ValueError(
                f"Attention: embed_dim must be a multiple of heads: got {embed_dim}, {heads}; or give head_dim"
            )
        self.heads, self.kv_heads = heads, kv_heads
        self.head_dim = embed_dim // heads if head_dim is None else head_dim
        if not 0 <= dropout < 1:
            raise ValueError(f"Attention: dropout must be at least 0 and below 1: got {dropout}; pass 0 for none")
        self.method, self.causal, self.dropout = method, causal, dropout
        self.q_proj = nn.Linear(embed_dim, heads * self.head_dim, bias, device, dtype)
        self.k_proj = nn.Linear(kv_dim, kv_heads * self.head_dim, bias, device, dtype)
        self.v_proj = nn.Linear(kv_dim, kv_heads * self.head_dim, bias, device, dtype)
        self.out_proj = nn.Linear(heads * self.head_dim, embed_dim, bias, device, dtype)
        self.gate: OutputGate | None = None
        if gate is not None:
            self.gate = OutputGate(embed_dim, heads, self.head_dim, gate, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor, context: Tensor | None = None, *, attn_mask: Tensor | None = None) -> Tensor:
        """Attend from ``x`` to ``context``, or to itself.

        Args:
            x: (batch, q_len, embed_dim).
            context: (batch, kv_len, kv_dim); None for ``x``.
            attn_mask: broadcasts to (batch, heads, q_len, kv_len), as in :func:`dynattn.attention`: bool, True may
                be attended, or floating point, added to the scores. For a key-padding mask (batch, kv_len), pass
                ``mask[:, None, None, :]``.

        Returns:
            (batch, q_len, embed_dim).
        """
        context = x if context is None else context
        query = self.q_proj(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        key = self.k_proj(context).unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)
        value = self.v_proj(context).unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)
        dropped = self.dropout if self.training else 0.0
        out = attention(query, key, value, self.method, attn_mask=attn_mask, causal=self.causal, dropout_p=dropped)
        if self.gate is not None:
            out = (out * self.gate(x)).to(out.dtype)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def add_gate(self, form: Form = "elementwise") -> None:
        """Give a trained module a gate whose factor is 1 until it is trained, so that the module is what it was.

        The gate's weights are new parameters, all 0: make the optimizer afterwards.

        Args:
            form: ``headwise`` or ``elementwise``.

        Raises:
            ValueError: there is no such form, or the module has a gate.
        """
        if self.gate is not None:
            raise ValueError(
                f"Attention.add_gate: the module must have no gate: it has one that is {self.gate.form}; set gate to "
                "None first to start anew"
            )
        weight = self.q_proj.weight
        self.gate = OutputGate(
            weight.shape[1], self.heads, self.head_dim, form, neutral=True, bias=self.q_proj.bias is not None,
            device=weight.device, dtype=weight.dtype,
        ).train(self.training)  # fmt: skip

    @torch.no_grad()
    def fold_gate(self) -> None:
        """Move a gate's ceiling into the output projection, so that the gate is a plain sigmoid, as published ones are.

        The module computes what it did: twice a sigmoid times W_o is a sigmoid times twice W_o.

        Raises:
            ValueError: the module has no gate.
        """
        if self.gate is None:
            raise ValueError("Attention.fold_gate: the module must have a gate: it has none; call add_gate() first")
        self.out_proj.weight *= self.gate.ceiling
        self.gate.ceiling.fill_(1)

    def extra_repr(self) -> str:
        kv_heads = f", kv_heads={self.kv_heads}" if self.kv_heads != self.heads else ""
        causal = ", causal=True" if self.causal else ""
        dropout = f", dropout={self.dropout}" if self.dropout else ""
        return f"heads={self.heads}{kv_heads}, head_dim={self.head_dim}, method={self.method.name}{causal}{dropout}"

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention, method: Method = NM(2, 4), *, causal: bool = False) -> Attention:
        """An ``Attention`` with copies of a ``torch.nn.MultiheadAttention``'s weights, and its dropout.

        Its inputs are batch-first whatever ``module.batch_first`` says.

        Args:
            module: the trained module, with ``kdim == vdim``.
            method: what to keep.
            causal: as in :class:`Attention`.

        Raises:
            ValueError: the module has something that this one does not compute.
        """
        extra = {
            "add_bias_kv": module.bias_k is not None,
            "add_zero_attn": module.add_zero_attn,
            "kdim != vdim": module.kdim != module.vdim,
        }
        if any(extra.values()):
            found = ", ".join(name for name, has in extra.items() if has)
            raise ValueError(
                f"Attention.from_torch: module must have no bias_kv or zero_attn, and kdim == vdim: got {found}; "
                "keep torch's module there"
            )
        weights, biases = _projections(module)
        ours = cls(
            module.embed_dim, module.num_heads, kv_dim=module.kdim, method=method, causal=causal,
            dropout=module.dropout, bias=biases is not None, device=weights[0].device, dtype=weights[0].dtype,
        )  # fmt: skip
        projections = (ours.q_proj, ours.k_proj, ours.v_proj, ours.out_proj)
        with torch.no_grad():
            for i, projection in enumerate(projections):
                projection.weight.copy_(weights[i])
                if biases is not None:
                    projection.bias.copy_(biases[i])
        return ours.train(module.training)

    @classmethod
    def from_gated(
        cls,
        q_proj: nn.Linear,
        k_proj: nn.Linear,
        v_proj: nn.Linear,
        o_proj: nn.Linear,
        heads: int,
        kv_heads: int,
        *,
        groups: int | None = None,
        method: Method = NM(2, 4),
        causal: bool = True,
    ) -> Attention:
        """An ``Attention`` with copies of projections in the published layout, whose gates are rows of ``q_proj``.

        The projections alone: published models normalise and rotate queries and keys behind them, which this module
        does not.

        Args:
            q_proj: queries and gates, as :func:`~dynattn.nn.split_gated` takes them apart.
            k_proj: of all key heads.
            v_proj: likewise.
            o_proj: the output projection.
            heads: query heads.
            kv_heads: key and value heads.
            groups: the groups of heads in ``q_proj``; None for one for each key head, as in the paper's code.
            method: what to keep.
            causal: as in :class:`Attention`.

        Raises:
            ValueError: the rows are not those of queries and gates, or some of the projections alone have biases.
        """
        biases = [projection.bias is not None for projection in (q_proj, k_proj, v_proj, o_proj)]
        if any(biases) != all(biases):
            raise ValueError(
                f"Attention.from_gated: all projections must have biases, or none: got {biases} of query, key, value "
                "and output; give the others biases of 0"
            )
        head_dim, groups = o_proj.in_features // heads, kv_heads if groups is None else groups
        names = ["weight", "bias"] if all(biases) else ["weight"]
        parts = {name: split_gated(getattr(q_proj, name), heads, head_dim, groups) for name in names}
        form: Form = "headwise" if parts["weight"].gate.shape[0] == heads else "elementwise"
        ours = cls(
            q_proj.in_features, heads, kv_heads=kv_heads, head_dim=head_dim, method=method, causal=causal,
            bias=all(biases), gate=form, device=q_proj.weight.device, dtype=q_proj.weight.dtype,
        )  # fmt: skip
        state = {f"q_proj.{name}": part.query for name, part in parts.items()}
        state |= {f"gate.projection.{name}": part.gate for name, part in parts.items()}
        for ours_name, theirs in (("k_proj", k_proj), ("v_proj", v_proj), ("out_proj", o_proj)):
            state |= {f"{ours_name}.{name}": getattr(theirs, name) for name in names}
        state["gate.ceiling"] = ours.state_dict()["gate.ceiling"]  # 1, as published
        ours.load_state_dict(state)
        return ours.train(q_proj.training)


def _projections(module: nn.MultiheadAttention) -> tuple[list[Tensor], list[Tensor] | None]:
    """Weights and biases of the query, key, value and output projections; PyTorch stacks the first three."""
    if module.in_proj_weight is not None:
        weights = list(module.in_proj_weight.chunk(3))
    else:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    biases = None
    if module.in_proj_bias is not None:
        biases = [*module.in_proj_bias.chunk(3), module.out_proj.bias]
    return [*weights, module.out_proj.weight], biases
