"""The page: self-contained, escaped, and figures in the page's own ink."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from markupsafe import Markup

from dynattn.lab.page import Section, new_figure, render, svg, table


def _figure() -> str:
    figure, ax = new_figure(4, 2)
    ax.plot([0, 1], [0, 1], label="a & b")
    ax.set_xlabel("kept <mass>")
    ax.legend()
    return svg(figure, label='a "label"')


def test_svg_takes_its_ink_and_font_from_the_page_and_holds_no_address():
    text = _figure()
    assert text.startswith("<svg")
    assert "currentColor" in text
    assert "#000000" not in text
    assert "font-family" not in text
    assert "http" not in text
    assert "kept &lt;mass&gt;" in text
    assert 'aria-label="a &#34;label&#34;"' in text


def test_page_escapes_plain_text_and_keeps_html():
    text = render("a <b>", "c & d", [Section("e <f>", "<p>g</p>", "h <i>")])
    for escaped in ("a &lt;b&gt;", "c &amp; d", "e &lt;f&gt;", "h &lt;i&gt;"):
        assert escaped in text
    assert "<p>g</p>" in text
    assert not re.search(r"https?:|(src|href)=", text)
    assert "prefers-color-scheme: dark" in text


def test_table_escapes_cells_and_sets_numbers_right():
    text = table(["name", "value"], [["<a>", 1.5], [Markup("<b>bold</b>"), "−3 ms"]])
    assert "&lt;a&gt;" in text
    assert "<b>bold</b>" in text
    assert text.count('class="number"') == 3  # the heading and two cells
    with pytest.raises(ValueError, match="each row must have 2 cells"):
        table(["name", "value"], [["only one"]])


def test_legends_have_no_box_of_their_own_colour():
    figure, ax = new_figure(4, 2)
    ax.plot([0, 1], [0, 1], label="a")
    ax.legend(frameon=True)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center")
    text = svg(figure)
    assert text.count('id="legend_') == 2
    for legend in text.split('id="legend_')[1:]:
        assert "patch_" not in legend.partition("text_")[0]  # the box comes before the text
    assert "#ffffff" not in text


def test_figures_keep_a_size_at_which_text_can_be_read():
    found = re.search(r"<svg[^>]*min-width: (\d+)px", _figure())
    assert found is not None
    assert int(found[1]) >= 0.75 * 4 * 96
    assert re.search(r"figure \{[^}]*overflow-x: auto", render("a", "b", []))


def test_dollar_signs_begin_no_formula():
    figure, ax = new_figure(4, 2)
    ax.set_title("costs $5 and $x_1$ or $\\frac")
    ax.plot([1, 2], [1, 1000], label="$y$")
    ax.set_yscale("log")
    ax.legend()
    text = svg(figure)
    assert "costs $5 and $x_1$ or $\\frac" in text
    assert ">$y$<" in text
    assert "mathdefault" not in re.sub(r"<!--.*?-->", "", text)  # the axis's own formulas are set as ones
