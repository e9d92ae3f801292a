"""Names of methods, one or more of every registered class, for tests that no method may slip through."""

from __future__ import annotations

NAMES = (
    "nm-1-2",
    "nm-2-4-x3-w3-s1",
    "dense",
    "topk-3",
    "topk-0.3-f2",
    "topk-1.0",
    "threshold-0.05",
    "mass-0.7",
    "blocktopk-0.5-b8",
    "blocktopk-0.5-b4",
    "blocktopk-0.5-b16-antidiagonal",
    "blocktopk-0.5-b8-sampled-w0-s0-f0",
    "blockmass-0.5-b8-bounds",
    "blockbound-0.9-b8",
    "blockskip-1.5",
    "blockskip-1.5-in(blocktopk-0.5-b16)",
    "clustered-blocktopk-0.5-b8-sampled-w0-s0",
    "verticalslash-8-8-b8-l5",
    "flexprefill-0.5-b8-m8-l5",
    "quest-8-p4",
    "window-5-s2",
    "fixed-0.5",
    "random-0.5-f2",
    "dsa-0.5-k0.25-int4-v4",
    "efficient",
    "scatterbrain-f8-b4-r1",
    "topk-3+window-2",
    "nm-1-2&window-5",
    "nm-1-2&blocktopk-0.5-b8",
    "perhead(nm-1-2_window-4_2*topk-3)",
)
LAYERED = ("perlayer(nm-1-2_0-2=dense)",)
"""What a call of attention does not take."""

PLAIN = frozenset({"efficient", "scatterbrain-f8-b4-r1"})
"""Those that are plain PyTorch outside of compiled code, which has derivatives of any kind."""
