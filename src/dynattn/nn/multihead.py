"""``MultiheadAttention`` in the place of PyTorch's own: its signature, its weights, its masks.

attention = dynattn.nn.MultiheadAttention(512, 8, batch_first=True, method=NM(2, 4))
out, _ = attention(x, x, x, key_padding_mask=padding, need_weights=False)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynattn.functional import attention
from dynattn.methods import NM, Method


class MultiheadAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` whose heads keep only the weights that ``method`` chooses.

    Arguments, ``state_dict`` and results are those of PyTorch's module; with ``method=NM(1, 1)``, which is dense, they
    are its results up to rounding. It takes no fused path around the method: ``torch.nn.TransformerEncoderLayer`` calls
    it in ``eval()`` too. A query that may attend to nothing gets 0 before the output projection, where PyTorch's module
    gives NaN.

    Args:
        embed_dim: width of queries and of the output.
        num_heads: heads, a divisor of ``embed_dim``.
        dropout: probability with which a kept weight is dropped in ``train()`` mode, drawn from PyTorch's generator.
        bias: whether the projections have biases.
        add_bias_kv: append one learned key and value, which every query may attend to.
        add_zero_attn: append one key and value of zeros, which every query may attend to.
        kdim: width of keys; None for ``embed_dim``.
        vdim: width of values; None for ``embed_dim``.
        batch_first: whether inputs are (batch, length, width) in place of (length, batch, width).
        device: the device of the weights.
        dtype: the dtype of the weights.
        method: what to keep. The attribute may be set anew at any time; it holds no weights.

    Raises:
        ValueError: ``dropout`` is not a probability below 1, or sizes do not divide.

    Source: arXiv:1706.03762.
    """

    method: Method

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        method: Method = NM(2, 4),
    ) -> None:
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: embed_dim must be a multiple of num_heads: got {embed_dim}, {num_heads}; choose "
                "a number of heads that divides it"
            )
        if not 0 <= dropout < 1:
            raise ValueError(
                f"MultiheadAttention: dropout must be at least 0 and below 1: got {dropout}; pass 0 for none"
            )
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        self.method = method
        # What torch.nn.TransformerEncoderLayer asks before it takes the weights and computes dense attention itself.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: (batch, q_len, embed_dim), or (q_len, batch, embed_dim) unless ``batch_first``, or without a batch.
            key: the same with kv_len and ``kdim``.
            value: the same with kv_len and ``vdim``.
            key_padding_mask: (batch, kv_len), or (kv_len) without a batch; bool: **True is ignored**, or floating
                point, added to the scores.
            need_weights: also return the weights that were kept, which takes memory for all pairs. As in PyTorch the
                default is True: pass False.
            attn_mask: (q_len, kv_len) or (batch * num_heads, q_len, kv_len); bool: **True is forbidden**, or floating
                point, added to the scores.
            average_attn_weights: whether the weights are the mean over the heads.
            is_causal: forbid keys after the query. As in PyTorch it says that ``attn_mask`` is that mask, which then is
                not read where queries and keys are as many; it may be left out there.

        Returns:
            The output, in the layout of ``query``, and the weights, (batch, q_len, kv_len), or
            (batch, num_heads, q_len, kv_len) where they are not averaged, or None. They are 0 at pairs that the method
            does not keep, and hold appended keys too.

        Raises:
            TypeError: an input is nested, or a mask neither bool nor floating point.
            ValueError: shapes do not fit, or ``is_causal`` does not say where the queries stand among the keys.
        """
        _check_inputs(self, query, key, value)
        keys = key.shape[-2] if self.batch_first or query.dim() == 2 else key.shape[0]
        q, k, v = (self._heads(x) for x in self._project(query, key, value))
        _check_masks(key_padding_mask, attn_mask, query.dim() == 3, q.shape[:3], keys)
        k, v = self._append(k, self.bias_k), self._append(v, self.bias_v)
        causal = bool(is_causal) and q.shape[2] == keys == k.shape[2]
        if is_causal and not causal and attn_mask is None:
            raise ValueError(
                "MultiheadAttention: is_causal needs an attn_mask where queries and keys are not as many, or keys are "
                f"appended: got {q.shape[2]} queries and {keys} keys, and {k.shape[2] - keys} appended; pass the mask "
                "too"
            )
        mask = _allowed(key_padding_mask, None if causal else attn_mask, self.num_heads, k.shape[2] - keys, q.dtype)
        if need_weights:  # the weights are what attention makes of the unit vectors
            units = torch.eye(k.shape[2], dtype=v.dtype, device=v.device)
            v = torch.cat((v, units.expand(*v.shape[:2], -1, -1)), dim=-1)
        dropped = self.dropout if self.training else 0.0
        out = attention(q, k, v, self.method, attn_mask=mask, causal=causal, dropout_p=dropped)
        out, weights = out.split((self.head_dim, k.shape[2]), dim=-1) if need_weights else (out, None)
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if query.dim() == 3 else weights.squeeze(0)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if query.dim() == 2:
            return out.squeeze(0), weights
        return out if self.batch_first else out.transpose(0, 1), weights

    def _reset_parameters(self) -> None:
        # PyTorch's asks this attribute which weights there are.
        before, self._qkv_same_embed_dim = self._qkv_same_embed_dim, self.in_proj_weight is not None
        super()._reset_parameters()
        self._qkv_same_embed_dim = before

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, method={self.method.name}"

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif query is key and key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(map(F.linear, (query, key, value), weights, biases))

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, num_heads, length, head_dim), a view."""
        if x.dim() == 2:
            x = x.unsqueeze(0)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _append(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values with the learned one, and the one of zeros, behind them."""
        parts = [x]
        if bias is not None:
            learned = bias.to(x.dtype).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            parts.append(learned.expand(x.shape[0], -1, -1, -1))
        if self.add_zero_attn:
            parts.append(x.new_zeros(x.shape[0], self.num_heads, 1, self.head_dim))
        return torch.cat(parts, dim=2) if len(parts) > 1 else x


def _check_inputs(module: MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> None:
    given = {"query": query, "key": key, "value": value}
    widths = (module.embed_dim, module.kdim, module.vdim)
    for (name, x), width in zip(given.items(), widths, strict=True):
        if x.is_nested:
            raise TypeError(
                f"MultiheadAttention: {name} must not be nested: got a nested tensor; pass a padded one and a "
                "key_padding_mask. torch.nn.TransformerEncoder makes none with enable_nested_tensor=False"
            )
        if x.dim() not in (2, 3) or x.dim() != query.dim():
            raise ValueError(
                "MultiheadAttention: query, key and value must have 3 dimensions, or 2 without a batch: got "
                f"{', '.join(str(tuple(x.shape)) for x in given.values())}; add or take the batch of all of them"
            )
        if x.shape[-1] != width:
            raise ValueError(
                f"MultiheadAttention: the width of {name} must be {width}: got {tuple(x.shape)}; build the module with "
                f"{'embed_dim' if name == 'query' else name[0] + 'dim'}={x.shape[-1]}, or project it"
            )
    first = 0 if module.batch_first else 1
    if key.shape[:-1] != value.shape[:-1] or (query.dim() == 3 and query.shape[first] != key.shape[first]):
        raise ValueError(
            "MultiheadAttention: query, key and value must have one batch, key and value one length: got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}, batch_first={module.batch_first}; "
            "check batch_first"
        )


def _check_masks(
    padding: Tensor | None, mask: Tensor | None, batched: bool, q_shape: torch.Size | tuple[int, ...], keys: int
) -> None:
    batch, heads, q_len = q_shape
    wanted = (
        ("key_padding_mask", padding, ((batch, keys) if batched else (keys,),)),
        ("attn_mask", mask, ((q_len, keys), (batch * heads, q_len, keys))),
    )
    for name, given, shapes in wanted:
        if given is None:
            continue
        if given.dtype != torch.bool and not given.is_floating_point():
            raise TypeError(
                f"MultiheadAttention: {name} must be bool or floating point: got {given.dtype}; convert with .bool(), "
                "where True is left out"
            )
        if not any(tuple(given.shape) == shape for shape in shapes):
            raise ValueError(
                f"MultiheadAttention: {name} must have shape {' or '.join(map(str, shapes))}: got "
                f"{tuple(given.shape)}; reshape or expand it"
            )


def _allowed(
    padding: Tensor | None, mask: Tensor | None, heads: int, appended: int, dtype: torch.dtype
) -> Tensor | None:
    """One mask as :func:`dynattn.attention` takes it: True may be attended, or added to the scores."""
    parts = []
    if padding is not None:
        parts.append((padding if padding.dim() == 2 else padding.unsqueeze(0))[:, None, None])
    if mask is not None:
        parts.append(mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (-1, heads)))
    if not parts:
        return None
    if all(part.dtype == torch.bool for part in parts):
        forbidden = parts[0] if len(parts) == 1 else parts[0] | parts[1]
        return ~F.pad(forbidden, (0, appended))
    added = [_added(part, dtype) if part.dtype == torch.bool else part for part in parts]
    return F.pad(added[0] if len(added) == 1 else added[0] + added[1], (0, appended))


def _added(forbidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(forbidden, dtype=dtype).masked_fill(forbidden, -torch.inf)
