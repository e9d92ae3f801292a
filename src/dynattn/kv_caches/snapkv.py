"""SnapKV: the cache is cut once, when the prompt has been read, by what its last queries attend to.

    received_j = Σ over the last ``window`` queries of the mean over the query heads of a key head
    score      = mean of received over ``pool`` neighbouring tokens
    held       = { first ``sinks`` } ∪ { latest ``recent`` } ∪ { best others by score }: ``capacity`` tokens a key head

Of equal scores, the earlier token's wins.

Source: arXiv:2404.14469. The mean over the query heads of a group, and the defaults, are those of The Sparse Frontier,
arXiv:2504.17768.
"""

from __future__ import annotations

from dynattn.integrations.transformers import Call
from dynattn.kv_caches.observed import best
from dynattn.kv_caches.snapkv_options import SnapCache, SnapLayer


class _SnapKVLayer(SnapLayer):
    def cut(self, call: Call) -> None:
        if self.seen > self.options.capacity:
            self.evict(best(self.options.rank(call, self.seen, "sum", "SnapKVCache"), self.options.capacity))


class SnapKVCache(SnapCache):
    """Holds, of a prompt, the tokens that its last queries attend to, each key head its own; and every token after it.
    It needs one of this project's attention implementations.

        model.set_attn_implementation("dynattn:dense")
        cache = SnapKVCache(capacity=1024)
        model.generate(**prompt, past_key_values=cache)

    The first forward attends to all of its tokens; then each layer's cache is cut, right after its attention. A prompt
    of no more than ``capacity`` tokens is not cut. Batches are padded on the left; padding is the first to go.

    Args:
        capacity: how many tokens of the prompt each key head holds.
        window: so many of the last queries choose.
        pool: the scores of so many neighbouring tokens are averaged, so that a word comes with what is around it; odd.
        recent: how many of the latest tokens of the prompt are always held.
        sinks: how many of the first tokens are always held.

    Attributes:
        options: the arguments.
        name: its name, as :func:`dynattn.kv_caches.make` takes it.

    Raises:
        TypeError: an argument is no int.
        ValueError: an argument is out of range; while generating, the attention implementation is not one of this
            project's, or a batch is padded on the right.
    """

    prefix = "snapkv"
    layer = _SnapKVLayer
