"""The attention backend that takes the place of vLLM's own on CPUs."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor
from vllm.v1.attention.backends.cpu_attn import (  # type: ignore[import-not-found]
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
)

from dynattn.integrations.vllm import layout
from dynattn.integrations.vllm.attend import Step, over_pages
from dynattn.integrations.vllm.chosen import VARIABLE, read
from dynattn.varlen import varlen_attention

_ENCODERS = ("encoder", "encoder_only")


class Backend(CPUAttentionBackend):
    """vLLM's own backend with another implementation. Shapes of the cache and metadata are vLLM's."""

    @staticmethod
    def get_impl_cls() -> type[Any]:
        """The implementation of a layer."""
        return Implementation


class Implementation(CPUAttentionBackendImpl):
    """One layer's attention by the method that ``DYNATTN_VLLM`` names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._chosen = read(os.environ[VARIABLE])
        self._cache: Tensor | None = None
        self._refuse()

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write new keys and values into their pages; encoders keep none."""
        if self.attn_type not in _ENCODERS:
            layout.write(self._views(kv_cache), key, value, slot_mapping)

    def forward(
        self, layer: Any, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, attn_metadata: Any,
        output: Tensor, *_: Any, **__: Any,
    ) -> Tensor:  # fmt: skip
        """Attention of one step, into ``output``, as vLLM asks for it."""
        if attn_metadata is None:  # vLLM warms up
            return output
        tokens = attn_metadata.num_actual_tokens
        query, name = query[:tokens].view(tokens, self.num_heads, self.head_size), str(layer.layer_name)
        causal = bool(attn_metadata.causal)
        if getattr(attn_metadata, "dynamic_causal", None) is not None:
            raise NotImplementedError(
                f"dynattn: {VARIABLE} cannot serve a step of which only some requests are causal; start vLLM "
                f"without {VARIABLE}"
            )
        before = self.sliding_window - 1 if self.sliding_window > 0 else -1
        options = {"scale": self.scale, "window_size": (before, before if before >= 0 and not causal else -1)}
        if self.attn_type in _ENCODERS:
            key, value = (x[:tokens].view(tokens, self.num_kv_heads, self.head_size) for x in (key, value))
            method = self._chosen.method(name, decoding=False)
            bounds = attn_metadata.query_start_loc
            found = varlen_attention(query, key, value, method, cu_seq_q=bounds, causal=causal, **options)
        else:
            step = Step(attn_metadata.query_start_loc, attn_metadata.seq_lens, attn_metadata.block_table, causal)
            found = over_pages(query, *self._views(kv_cache), step, self._chosen, name, **options)
        output[:tokens].copy_(found.view_as(output[:tokens]))
        return output

    def _views(self, kv_cache: Tensor) -> layout.Pools:
        """The layer's cache as pools of pages: vLLM gives the same tensor in every step."""
        if self._cache is not kv_cache:
            self._cache, self._pools = kv_cache, layout.pools(kv_cache)
        return self._pools

    def _refuse(self) -> None:
        """Refuse what vLLM's own kernel adds to the scores, and this one would drop."""
        asked = {
            "ALiBi slopes": self.alibi_slopes is not None,
            "soft-capped scores": bool(self.logits_soft_cap),
            "learned sinks": self.sinks is not None,
            "attention over an encoder's output": self.attn_type == "encoder_decoder",
            "a cache of 8-bit numbers": self.is_fp8_kv_cache,
            "keys shared with another layer": self.kv_sharing_target_layer_name is not None,
        }
        found = [what for what, asks in asked.items() if asks]
        if found:
            raise NotImplementedError(
                f"dynattn: {VARIABLE} cannot serve this model: a layer asks for {', '.join(found)}; start vLLM without "
                f"{VARIABLE}"
            )
        if self.sliding_window > 0 and not self._chosen.keeps_everything:
            raise NotImplementedError(
                f"dynattn: {VARIABLE} must be dense for a model that has layers with a sliding window, whose cache "
                f"forgets the keys from which others count: got {os.environ[VARIABLE]!r}; set {VARIABLE}=dense"
            )
