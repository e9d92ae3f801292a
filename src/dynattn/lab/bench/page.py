"""A record as one self-contained HTML page."""

from __future__ import annotations

import html

from dynattn.lab.bench import plots
from dynattn.lab.bench.record import Record
from dynattn.lab.bench.table import cells, columns, limits, mistakes, note, warning
from dynattn.lab.machine import describe
from dynattn.lab.page import Section, render, svg, table


def page(record: Record) -> str:
    """The page: speed-ups, shares of the machine's peak, every figure, the machine."""
    baseline = plots.baseline_name(record)
    sections = [
        Section(
            f"Speed-up over {baseline}",
            f"<figure>{svg(plots.speedups(record), f'Speed-ups over {baseline}, by workload')}</figure>",
            "Medians of the ratios within each round; the lines on the bars are quartiles. A workload is named by "
            "batch · heads × length × head_dim.",
        )
    ]
    if record.roofline.flops is not None:
        shares = svg(plots.shares_of_peak(record), "Share of the multiply-add peak, by workload")
        sections.append(
            Section(
                "Share of the machine's peak", f"<figure>{shares}</figure>", f"Measured: {limits(record.roofline)}."
            )
        )
    lines = [*mistakes(record), *filter(None, [warning(record)])]
    warned = "".join(f'<p class="bad">{html.escape(line)}</p>' for line in lines)
    sections += [
        Section(
            "Figures",
            warned + table(columns(record), [list(cells(record, result).values()) for result in record.results]),
            note(record, more=True),
        ),
        Section(
            "Machine", f"<p>{html.escape(describe(record.machine))}</p><p>{html.escape(limits(record.roofline))}</p>"
        ),
    ]
    where = record.machine["gpu"]["name"] if record.on_gpu else record.machine["processor"]
    return render("Attention kernels", f"Suite {record.suite} on {where}", sections)
