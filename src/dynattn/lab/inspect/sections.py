"""The page of one inspection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from markupsafe import escape

from dynattn.lab.inspect import Inspection, Shown, figures
from dynattn.lab.page import Section, render, svg, table
from dynattn.methods.nm import NM

_LISTED = 12  # keys in the table of the most dropped ones
_LONGEST_STRIP = 2048  # tokens


def page(found: Inspection) -> str:
    """The HTML page of an inspection, self-contained.

    Args:
        found: what to show.

    Returns:
        The document.
    """
    sections = [
        Section("In short", _cards(found), _short_note(found)),
        Section(
            "Kept mass by layer and head",
            _figure(svg(figures.kept_mass_grid(found.heads), "kept mass of each layer and head")),
            "Kept mass: the share of the dense attention weights that the kept pairs hold, mean over queries. Each "
            "head is measured on the inputs that it has in the dense model.",
        ),
        Section("Measured against theory", _theory(found)),
        Section("Attention maps", "".join(_head(found, shown) for shown in found.shown), _maps_note(found)),
        Section("What is dropped", _dropped(found), _DROPPED_NOTE),
        Section("All heads", _all_heads(found)),
    ]
    return render(f"What {found.method.name} keeps", f"{found.model}. {found.subject.title}.", sections)


_DROPPED_NOTE = (
    "Means over all layers and heads. Received: dense attention that a token gets as a key, summed over the queries "
    "(1 on average). Lost: the part of it that is dropped. Kept by: share of the queries, among those that may see it."
)


def _cards(found: Inspection) -> str:
    worst = min(found.heads, key=lambda h: h.kept_mass)
    bound = sum(h.bound for h in found.heads)
    cards = [
        (f"{found.mean('kept_mass'):.3f}", "kept mass, mean of heads"),
        (f"{worst.kept_mass:.3f}", f"lowest head: layer {worst.layer}, head {worst.head}"),
        (f"{found.mean('density'):.1%}", "of the pairs kept"),
        (f"{found.mean('predicted'):.3f}", "kept mass the theory expects"),
        (f"{found.mean('output_error'):.1%}", "output error, mean of heads"),
        (f"{found.output_error:.1%}", f"error of the model's output (cosine {found.output_cosine:.4f})"),
    ]
    if found.same_next_token is not None:
        cards.append((f"{found.same_next_token:.1%}", "same most likely next token"))
    if bound:
        share = sum(h.error for h in found.heads) / bound
        cards.append((f"{share:.0%}", "error, of what the certificate allows"))
    return '<div class="cards">' + "".join(
        f'<div class="card"><b>{value}</b><span>{escape(label)}</span></div>' for value, label in cards
    ) + "</div>"  # fmt: skip


def _short_note(found: Inspection) -> str:
    rows = "holds in every row of every head" if found.bound_holds else "FAILED in some row: this is a bug, report it"
    return (
        "Errors are relative, in the Frobenius norm. The model's output is taken with the method in every layer, "
        "without any training. Certificate: an output row is off by at most (1 − kept mass) · diameter of the values; "
        f"it {rows}."
    )


def _theory(found: Inspection) -> str:
    method = found.method
    worst = method.n / method.m
    rows = [
        ("worst case of any scores", f"{worst:.3f}", f"{method.n}/{method.m}: each group keeps at least its share"),
        ("random choice", f"{found.mean('random'):.3f}", "as many pairs per query, drawn blindly"),
        ("theory", f"{found.mean('predicted'):.3f}", "independent Gaussian scores of each head's σ and row lengths"),
        (f"{method.name}, keys shuffled", f"{found.mean('shuffled'):.3f}", "the head's own scores, in random order"),
        (method.name, f"{found.mean('kept_mass'):.3f}", "the head's own scores, as they are"),
        (
            "top-k",
            f"{found.mean('top_k'):.3f}",
            "as many pairs per query, the largest: the most that any choice can keep",
        ),
    ]
    shape = found.mean("shuffled") - found.mean("predicted")
    place = found.mean("kept_mass") - found.mean("shuffled")
    return (
        _figure(svg(figures.theory_plots(found.heads, method), "kept mass against sigma, measured against predicted"))
        + table(("choice", "kept mass", "what it is"), rows)
        + "<p>Real scores are not independent Gaussian draws, in two ways that the shuffled keys tell apart. "
        f"Their shape: rows differ in spread, and a few keys stand far above the rest ({shape:+.3f} from theory to "
        "shuffled). Their place: large scores that stand in one group compete, as those of neighbours do "
        f"({place:+.3f} from shuffled to real).</p>" + (_band_note(method) if method.window or method.sinks else "")
    )


def _band_note(method: NM) -> str:
    return (
        f"<p>The nearest keys (window {method.window}) and the first ones (sinks {method.sinks}) are kept whatever "
        "their scores. The theory counts them as a share of the row like any other; real models attend most to just "
        f"these. The curve of {method.n}:{method.m} on the left is that of the choice alone.</p>"
    )


def _head(found: Inspection, shown: Shown) -> str:
    head, subject = shown.head, found.subject
    parts = [
        f"<h3>Layer {head.layer}, head {head.head}: {escape(shown.reason)}</h3>",
        f"<p>Kept mass {head.kept_mass:.3f} (worst query {head.worst_row:.3f}), expected {head.predicted:.3f} "
        f"for σ = {head.sigma:.2f}; top-k of the same density {head.top_k:.3f}; output error "
        f"{head.output_error:.1%}.</p>",
    ]
    name = f"layer {head.layer}, head {head.head}"
    if subject.image is not None and subject.grid is not None:
        drawing = figures.overlays(shown.maps, subject, subject.image, subject.grid)
        parts.append(_figure(svg(drawing, f"attention of {name} on the image")))
    parts.append(_figure(svg(figures.attention_maps(shown.maps, subject), f"attention maps of {name}")))
    if figures.needs_zoom(shown.maps) and subject.image is None:
        parts.append(_figure(svg(figures.zoomed_maps(shown.maps, subject), f"part of the maps of {name}")))
    return "".join(parts)


def _maps_note(found: Inspection) -> str:
    note = "Ink grows with the square root of the weight. Kept and dropped are dense weights: together they are dense."
    if any(figures.needs_zoom(shown.maps) for shown in found.shown):
        note += " Long maps are averaged over blocks"
        note += "; below each, the 32 tokens that lose most to each other." if found.subject.image is None else "."
    if found.subject.image is not None:
        note += " On the image: the patch in the yellow square as the query; class token and registers are left out."
    return note


def _dropped(found: Inspection) -> str:
    count = len(found.subject.labels)
    received, lost, kept_by = (
        torch.stack([getattr(h.keys, field) for h in found.heads]).double().mean(0)
        for field in ("received", "lost", "kept_by")
    )
    columns = ("token", "position", "received", "lost", "share lost", "kept by")
    order = sorted(range(count), key=lambda j: -float(lost[j]))
    share = lost / received.clamp(min=1e-30)
    rows = [
        (found.subject.labels[j], j, f"{received[j]:.2f}", f"{lost[j]:.3f}", f"{share[j]:.1%}", f"{kept_by[j]:.1%}")
        for j in order[:_LISTED]
    ]
    strip = _strip(found.subject.labels, [float(x) for x in share]) if found.subject.image is None else ""
    return strip + f"<h3>Tokens that lose most attention</h3>{table(columns, rows)}"


def _strip(labels: tuple[str, ...], share: list[float]) -> str:
    """The text, each token the redder the larger the share of its attention that is dropped."""
    shown = labels[:_LONGEST_STRIP]
    least, largest = min(share), max(share) or 1.0
    words = []
    for label, part in zip(shown, share, strict=False):
        alpha = 0.75 * (part - least) / (largest - least or 1.0)
        text = label.removeprefix("##") if label.startswith("##") else f" {label}"
        words.append(
            f'<span style="background:rgba(201,80,74,{alpha:.2f});border-radius:3px" '
            f'title="{part:.1%} of its attention lost">{escape(text)}</span>'
        )
    return (
        f"<p>The redder a token, the larger the share of the attention to it that is dropped: {least:.0%} where clear, "
        f"{largest:.0%} at most.</p>"
        f'<p style="max-width:60rem;line-height:1.9">{"".join(words)}</p>'
    )


def _all_heads(found: Inspection) -> str:
    columns: dict[str, Callable] = {
        "layer": lambda h: h.layer,
        "head": lambda h: h.head,
        "σ": lambda h: f"{h.sigma:.2f}",
        "kept mass": lambda h: f"{h.kept_mass:.3f}",
        "worst query": lambda h: f"{h.worst_row:.3f}",
        "theory": lambda h: f"{h.predicted:.3f}",
        "shuffled": lambda h: f"{h.shuffled:.3f}",
        "top-k": lambda h: f"{h.top_k:.3f}",
        "random": lambda h: f"{h.random:.3f}",
        "output error": lambda h: f"{h.output_error:.1%}",
    }
    rows = [[cell(h) for cell in columns.values()] for h in found.heads]
    return f"<details><summary>{len(rows)} heads</summary>{table(tuple(columns), rows)}</details>"


def _figure(drawing: str) -> str:
    return f"<figure>{drawing}</figure>"
