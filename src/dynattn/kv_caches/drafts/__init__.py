"""What a draft of the answer chooses: which tokens of a prompt a cache holds, or which ones a model reads at all.

    from dynattn.kv_caches import drafts

    model.set_attn_implementation("dynattn:dense")
    cache = drafts.SpecKV(lookahead=64, capacity=256, draft=drafts.SelfDraft()).read(model, **prompt)
    model.generate(**prompt, past_key_values=cache, max_new_tokens=64)

Source: arXiv:2506.08373. :class:`Sirius` is about the answer itself: a cheap forward of the model writes it, and a
dense one corrects it.
"""

from dynattn.kv_caches.drafts.cascade import Shortened, SpecKVPC
from dynattn.kv_caches.drafts.greedy import continuation
from dynattn.kv_caches.drafts.griffin import Griffin
from dynattn.kv_caches.drafts.self_draft import SelfDraft
from dynattn.kv_caches.drafts.sirius import Corrected, Round, Sirius
from dynattn.kv_caches.drafts.speckv import SpecKV, SpecKVCache
from dynattn.kv_caches.drafts.specpc import Compressed, SpecPC

__all__ = [
    "Compressed", "Corrected", "Griffin", "Round", "SelfDraft", "Shortened", "Sirius", "SpecKV", "SpecKVCache",
    "SpecKVPC", "SpecPC", "continuation",
]  # fmt: skip
