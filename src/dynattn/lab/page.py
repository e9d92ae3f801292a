"""One self-contained HTML page: sections of text, tables and inline SVG figures; readable in light and dark mode.

Figures take their ink from the page (black becomes ``currentColor``) so that one drawing serves both modes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#3f7fc1", "#d97f2b", "#2f9e74", "#b0589e", "#c9504a", "#8a8f98", "#8f7a2f", "#4aa3b5")
"""Line and marker colours with enough contrast on a white and on a dark page."""

_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
_PIXELS = 96  # of an inch
_LEAST_SCALE = 0.75  # of a figure, so that its text can be read; on a narrower screen it is scrolled
_NUMBER = re.compile(r"[+\-−±≈<>~]?\s*[\d.]|[–—-]?$")


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        title: heading, plain text.
        body_html: trusted HTML: tables, figures, paragraphs.
        note: plain text under the body: what the figures mean and how they were measured.
    """

    title: str
    body_html: str
    note: str = ""


def new_figure(width: float = 9.0, height: float = 3.5, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure in the page's style, outside pyplot's global state.

    Args:
        width: inches; the page is 9 inches wide.
        height: inches.
        rows: rows of axes.
        columns: columns of axes.

    Returns:
        The figure and its axes: one ``Axes``, or an array of them (rows, columns) where there are several.
    """
    matplotlib = _matplotlib()
    with matplotlib.rc_context(_STYLE):
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        axes: Axes | Any = figure.subplots(rows, columns)
    return figure, axes


def svg(figure: Figure, label: str = "") -> str:
    """A matplotlib figure as inline SVG: no background, black drawn in the page's text colour.

    Args:
        figure: the figure; one of :func:`new_figure` fits the page.
        label: what it shows, for people who cannot see it.

    Returns:
        An ``<svg>`` element to be put into a page's body.
    """
    matplotlib = _matplotlib()
    _on_the_page(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)  # HTML needs none, and the page then holds no address at all
    text = re.sub(r" ?font-family: [^;\"]*;?", "", text)  # the page's own font is inherited
    text = text.replace("#000000", "currentColor").replace("fill: black", "fill: currentColor")
    role = f' role="img" aria-label="{_escape(label)}"' if label else ""
    least = round(_LEAST_SCALE * _PIXELS * figure.get_figwidth())
    return text.replace("<svg", f'<svg{role} style="min-width: {least}px"', 1)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table. Columns of numbers stand right-aligned, except for the first, which names the rows.

    Args:
        columns: headings, plain text.
        rows: cells, one sequence a row; escaped unless ``markupsafe.Markup``.

    Returns:
        A ``<table>`` element.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"table: each row must have {len(columns)} cells, one per column: got {len(row)}: {row!r}")
    numeric = [
        i > 0
        and bool(rows)
        and all(_NUMBER.match(_plain(row[i])) for row in rows)
        and any(_plain(row[i]) for row in rows)
        for i in range(len(columns))
    ]
    classes = [' class="number"' if number else "" for number in numeric]
    head = "".join(f"<th{c}>{_escape(name)}</th>" for c, name in zip(classes, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{_escape(cell)}</td>" for c, cell in zip(classes, row, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def facts(record: Mapping[str, Any]) -> str:
    """A table of names and values; what is None is left out.

    Args:
        record: names, ``_`` for a space, and values, which may be dictionaries or sequences.
    """
    return table(["", ""], [[k.replace("_", " "), _value(v)] for k, v in record.items() if v is not None])


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page, as one HTML text that refers to nothing outside itself.

    Args:
        title: heading and window title, plain text.
        subtitle: the line below it, plain text.
        sections: what follows, in order.

    Returns:
        The HTML document.
    """
    return _environment().get_template("page.html").render(title=title, subtitle=subtitle, sections=sections)


def _on_the_page(figure: Figure) -> None:
    """No white box behind a legend, whose text takes the page's ink; and no dollar sign in a text begins a formula."""
    from matplotlib.legend import Legend
    from matplotlib.text import Text

    for legend in figure.findobj(Legend):
        legend.set_frame_on(False)  # pyright: ignore[reportAttributeAccessIssue]
    ticks = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in axis.get_ticklabels(which="both")
    }
    for text in figure.findobj(Text):
        if text not in ticks:  # a logarithmic axis writes its own as formulas
            text.set_parse_math(False)  # pyright: ignore[reportAttributeAccessIssue]


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "default"
    return str(value)


def _plain(cell: object) -> str:
    return re.sub(r"<[^>]*>", "", str(cell)).strip()


def _escape(value: object) -> str:
    from markupsafe import escape

    return str(escape(value))


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("report: jinja2 is needed to write a page; pip install 'dynattn[cli]'") from error
    return jinja2.Environment(loader=jinja2.PackageLoader("dynattn.lab"), autoescape=True, trim_blocks=True)


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("report: matplotlib is needed to draw figures; pip install 'dynattn[cli]'") from error
    return matplotlib
