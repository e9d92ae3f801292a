"""Interactive plots by Plotly, in the page's own ink: the style sheet colours text and lines, for light and dark.

Source: Plotly.js, https://plotly.com/javascript/ (MIT); its script stands in the page, which needs no network.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from dynattn.lab.figures import Interval
from dynattn.lab.frontier.choice import COSTS
from dynattn.lab.frontier.summary import Contender, ExamResult
from dynattn.lab.page import COLORS
from dynattn.lab.words import percent

STYLE = """<style>
figure.plot { overflow: visible; }
.plotly-graph-div .main-svg text { fill: var(--ink) !important; }
.plotly-graph-div .hoverlayer .hovertext text { fill: #ffffff !important; }
.plotly-graph-div .gridlayer path { stroke: var(--line) !important; }
.plotly-graph-div .zerolinelayer path, .plotly-graph-div .shapelayer path { stroke: var(--soft) !important; }
.plotly-graph-div .updatemenu-item-rect { fill: var(--raised) !important; stroke: var(--line) !important; }
.plotly-graph-div .modebar-group { background: transparent !important; }
.plotly-graph-div .modebar-btn path { fill: var(--soft) !important; }
</style>"""

_MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
_QUALITY = "quality retained"
_HEIGHT = 460  # of a row of panels, all that is around them included; here and below in pixels
_PANEL, _GAP = 250, 80  # of a panel among several, and between two that stand one below the other
# On a narrow screen: Plotly's own buttons, each of ours, the space above the panels, and the legend.
_BAR, _BUTTON, _TOP, _LEGEND = 30, 34, 60, 260
_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False}  # "Share chart" uploads the data
_FIT = """(() => {
  const plot = document.getElementById("{plot_id}");
  const narrow = window.matchMedia("(max-width: 800px)");
  const fit = () => {
    const layout = narrow.matches ? NARROW : WIDE;
    plot.style.height = plot.parentElement.style.height = layout.height + "px";
    Plotly.relayout(plot, layout);
  };
  narrow.addEventListener("change", fit);
  if (narrow.matches) fit();
})();"""


class _Axis(NamedTuple):
    title: str
    of_result: Callable[[ExamResult], float | None]


AXES = {
    "pairs": _Axis("pairs kept", lambda result: result.density),
    "FLOPs": _Axis("FLOPs of the model, over dense", lambda result: result.flops),
    "time": _Axis("time of the model, over dense", lambda result: result.time),
}


def overview(contenders: Sequence[Contender], first: bool) -> str:
    """Quality against pairs, FLOPs and time, each family a line through its budgets; mean or worst exam by a button.

    Args:
        contenders: the contenders of one phase.
        first: the plot carries the script that the page's others need, too.
    """
    costs = [name for name, cost in COSTS.items() if any(cost(contender) is not None for contender in contenders)]
    names = [name for name in AXES if name in costs]
    figure = _subplots(1, len(names), [AXES[name].title for name in names])
    views: tuple[tuple[str, Callable[[Contender], Interval]], ...] = (
        ("worst exam", lambda contender: contender.worst.retained),
        ("mean of the exams", lambda contender: contender.retained),
    )
    shown: set[tuple[int, str]] = set()
    for view, (_, quality) in enumerate(views):
        for number, (family, members) in enumerate(_families(contenders).items()):
            for column, name in enumerate(names, start=1):
                points = [(cost, member) for member in members if (cost := COSTS[name](member)) is not None]
                named = not points or (view, family) in shown  # a family may lack points in the first panel
                figure.add_trace(
                    _line(
                        family, number, [cost for cost, _ in points], [quality(member) for _, member in points],
                        [_hover(member) for _, member in points], legend=not named, visible=view == 0,
                    ),
                    row=1, col=column,
                )  # fmt: skip
                shown |= {(view, family)} if points else set()
    per_view = len(figure.data) // len(views)
    buttons = [
        {
            "label": title,
            "method": "update",
            "args": [{"visible": [trace // per_view == view for trace in range(len(figure.data))]}],
        }
        for view, (title, _) in enumerate(views)
    ]
    return _html(figure, buttons, _HEIGHT, first)


def by_exam(contenders: Sequence[Contender], titles: dict[str, str]) -> str:
    """One panel an exam; what lies across by a button.

    Args:
        contenders: the contenders of one phase.
        titles: the titles of the exams, by address, in the order of the panels.
    """
    columns = min(2, len(titles))
    rows = -(-len(titles) // columns)
    figure = _subplots(rows, columns, [html.escape(title) for title in titles.values()], titled=True)
    names = [
        name
        for name, axis in AXES.items()
        if any(axis.of_result(result) is not None for contender in contenders for result in contender.results)
    ]
    shown: set[tuple[int, str]] = set()
    for view, name in enumerate(names):
        for number, (family, members) in enumerate(_families(contenders).items()):
            for panel, exam in enumerate(titles):
                points = _points(members, exam, AXES[name])
                named = not points or (view, family) in shown
                figure.add_trace(
                    _line(
                        family, number, [x for x, _, _ in points], [result.retained for _, result, _ in points],
                        [_hover_result(member, result) for _, result, member in points],
                        legend=not named, visible=view == 0,
                    ),
                    row=panel // columns + 1, col=panel % columns + 1,
                )  # fmt: skip
                shown |= {(view, family)} if points else set()
    per_view = len(figure.data) // len(names)
    buttons = [
        {
            "label": AXES[name].title,
            "method": "update",
            "args": [{"visible": [trace // per_view == view for trace in range(len(figure.data))]}],
        }
        for view, name in enumerate(names)
    ]
    return _html(figure, buttons, _height(rows), first=False)


def _points(members: Sequence[Contender], exam: str, axis: _Axis) -> list[tuple[float, ExamResult, Contender]]:
    """The points of a family in one exam."""
    return [
        (x, result, member)
        for member in members
        for result in member.results
        if result.sheet.exam.key == exam and (x := axis.of_result(result)) is not None
    ]


def _families(contenders: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Methods that differ in the budget alone, the smallest budget first."""
    found: dict[str, list[Contender]] = {}
    for contender in sorted(contenders, key=lambda one: one.entry.budget or 1):
        found.setdefault(contender.entry.family, []).append(contender)
    return found


def _line(
    family: str, number: int, x: list[float], y: list[Interval], hover: list[str], *, legend: bool, visible: bool
) -> Any:
    graph = _graph_objects()
    up = [0.0 if found.high is None else found.high - found.mean for found in y]
    down = [0.0 if found.low is None else found.mean - found.low for found in y]
    color = COLORS[number % len(COLORS)]
    return graph.Scatter(
        x=x, y=[found.mean for found in y], name=html.escape(family), legendgroup=family,
        showlegend=legend, visible=visible, mode="lines+markers", text=hover, hovertemplate="%{text}<extra></extra>",
        error_y={"array": up, "arrayminus": down, "thickness": 1, "width": 3, "color": color},
        line={"color": color, "width": 1.5, "dash": "solid" if number < len(COLORS) else "dot"},
        marker={"color": color, "size": 8, "symbol": _MARKS[number % len(_MARKS)]},
    )  # fmt: skip


def _hover(member: Contender) -> str:
    worst = member.worst
    lines = [
        f"<b>{html.escape(member.label)}</b> ({html.escape(', '.join(member.names))})",
        f"worst, {html.escape(worst.sheet.exam.title)}: {percent(worst.retained)}",
        f"mean: {percent(member.retained)}",
        *_costs(member),
    ]
    return "<br>".join(lines)


def _hover_result(member: Contender, result: ExamResult) -> str:
    lines = [
        f"<b>{html.escape(member.label)}</b> ({html.escape(result.grade.cell.entry.name)})",
        f"{html.escape(result.sheet.metric)}: {sum(result.grade.scores) / len(result.grade.scores):.4f}",
        f"retained {percent(result.retained)}",
        *_costs(result),
    ]
    return "<br>".join(lines)


def _costs(found: Contender | ExamResult) -> list[str]:
    lines = [f"FLOPs {found.flops:.0%} of dense"]
    lines += [] if found.density is None else [f"pairs kept {found.density:.1%}"]
    lines += [] if found.time is None else [f"time {found.time:.0%} of dense"]
    return lines


def _subplots(rows: int, columns: int, titles: Sequence[str], titled: bool = False) -> Any:
    try:
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise ImportError("report: plotly is needed to draw this page; pip install 'dynattn[cli]'") from error
    figure = make_subplots(
        rows, columns, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=90 / _height(rows),
        subplot_titles=titles if titled else None,
    )  # fmt: skip
    for index, title in enumerate(titles):
        row, column = index // columns + 1, index % columns + 1
        figure.update_xaxes(title_text=None if titled else title, tickformat=".3~p", row=row, col=column)
    for spare in range(len(titles), rows * columns):
        row, column = spare // columns + 1, spare % columns + 1
        figure.update_xaxes(visible=False, row=row, col=column)
        figure.update_yaxes(visible=False, row=row, col=column)
    figure.update_yaxes(tickformat=".3~p")
    figure.update_yaxes(title_text=_QUALITY, col=1)
    return figure


def _height(rows: int) -> int:
    """Pixels of a figure of several panels."""
    return 140 + _PANEL * rows


def _html(figure: Any, buttons: list[dict[str, Any]], height: int, first: bool) -> str:
    menu = {
        "type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left",
        "y": 1 + 70 / height, "yanchor": "bottom", "showactive": False, "pad": {"t": 0},
    }  # fmt: skip
    figure.add_hline(1.0, line={"width": 1, "dash": "dash"})  # only where there are traces, so last
    figure.update_layout(
        height=height, updatemenus=[menu], paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 10, "t": 90, "b": 50}, hovermode="closest", font={"family": "inherit", "size": 12},
        hoverlabel={"bgcolor": "#333b47", "bordercolor": "#333b47", "align": "left"}, dragmode="zoom",
        legend={"orientation": "h", "y": -0.16, "yanchor": "top"},
    )  # fmt: skip
    narrow = _stacked(figure, len(buttons))
    script = _FIT.replace("NARROW", json.dumps(narrow)).replace("WIDE", json.dumps(_as_drawn(figure, narrow)))
    text = figure.to_html(full_html=False, include_plotlyjs=first, config=_CONFIG, post_script=script)
    return f'<figure class="plot">{text}</figure>'


def _stacked(figure: Any, buttons: int) -> dict[str, Any]:
    """The layout of a narrow screen, as Plotly's relayout takes it: one panel below another, buttons too."""
    panels = [axis for axis in figure.select_xaxes() if axis.visible is not False]
    suffixes = [axis.plotly_name.removeprefix("xaxis") for axis in panels]
    plotted = len(suffixes) * _PANEL + (len(suffixes) - 1) * _GAP
    top = _BAR + _TOP + _BUTTON * buttons
    found: dict[str, Any] = {
        "height": top + plotted + _LEGEND, "margin.t": top, "dragmode": False,  # a finger scrolls the page
        "updatemenus[0].direction": "down", "updatemenus[0].y": 1 + _TOP / plotted, "legend.y": -70 / plotted,
    }  # fmt: skip
    for number, suffix in enumerate(suffixes):
        upper = 1 - number * (_PANEL + _GAP) / plotted
        found |= {
            f"xaxis{suffix}.domain": [0, 1],
            f"yaxis{suffix}.domain": [max(0.0, upper - _PANEL / plotted), upper],
            f"yaxis{suffix}.showticklabels": True,
            f"yaxis{suffix}.title.text": _QUALITY,
        }
        if figure.layout.annotations:  # the panels' titles
            found |= {f"annotations[{number}].x": 0.5, f"annotations[{number}].y": upper}
    return found


def _as_drawn(figure: Any, changed: Iterable[str]) -> dict[str, Any]:
    """What the figure has in the places that another layout changes."""
    layout = figure.layout.to_plotly_json()
    found = {}
    for place in changed:
        value: Any = layout
        for part in place.replace("[", ".").replace("]", "").split("."):
            value = value[int(part)] if isinstance(value, (list, tuple)) else (value or {}).get(part)
        found[place] = value
    return found


def _graph_objects() -> Any:
    import plotly.graph_objects

    return plotly.graph_objects
