"""Placeholder until the loader stands here."""
def unavailable_reason(): return "the CPU library is not built"
def isa_available(name): return False
def best_isa(): return "portable"
def nm_forward(*a, **k): raise RuntimeError("not built")
