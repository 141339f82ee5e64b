"""Draw charts of the results of `creating.py --json`: `python bench/charts.py RESULTS.json FOLDER`.

The output is deterministic to the byte, so a chart in the docs changes only if its figures change.
"""

from __future__ import annotations

import io
import json
import re
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import StrMethodFormatter

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = dict[str, Any]

OURS, BARE, HTTPX = "plaid_relay_async", "bare aiohttp", "httpx"
# The palette of Okabe and Ito, which people with colour blindness can distinguish.
COLOURS = {
    OURS: "#0072B2",
    BARE: "#E69F00",
    "aiohttp, attrs, cattrs, backoff": "#CC79A7",
    HTTPX: "#56B4E9",
    "plaid-python on threads": "#009E73",
    "plaid for Node": "#D55E00",
}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "plaid_relay_async",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
}


def select(results: list[Result], **facts: object) -> list[Result]:
    return [each for each in results if facts.items() <= each.items()]


def median(results: list[Result], figure: Callable[[Result], float]) -> float:
    return statistics.median(map(figure, results))


def rate(result: Result) -> float:
    return float(result["created"] / result["wall"])


def cpu(result: Result) -> float:
    return float(result["cpu"] / result["created"] * 1e6)


# -------------------------------------------------------------------------------------------- the charts


def by_client(results: list[Result]) -> Figure | None:
    """Draw rate and CPU time of all clients, with 100 concurrent calls and no latency."""
    cell = select(results, table="a", latency=0, concurrency=100)
    peers = [peer for peer in COLOURS if select(cell, peer=peer)]
    if not peers:
        return None
    figure, row = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
    titles = "Creations per second (more is better)", "CPU time of each, µs (less is better)"
    for axes, title, measure in zip(row, titles, (rate, cpu), strict=True):
        values = [median(select(cell, peer=peer), measure) for peer in peers]
        bars(axes, peers, values)
        axes.set_title(title, fontsize=10)
        axes.locator_params(axis="x", nbins=4)
    figure.suptitle("100 concurrent calls, no latency", fontsize=11)
    return figure


def bars(axes: Axes, peers: list[str], values: list[float]) -> None:
    """Draw a bar for each client.

    The bar of httpx may be cut off and end in an arrow: its CPU time would make the other bars too short.
    """
    longest = max(value for peer, value in zip(peers, values, strict=True) if peer != HTTPX)
    limit = longest * 1.15
    axes.barh(peers, [min(value, limit) for value in values], color=[COLOURS[peer] for peer in peers])
    for position, value in enumerate(values):
        arrow = " →" if value > limit else ""
        x = min(value, limit) + longest * 0.02
        axes.text(x, position, f"{value:,.0f}{arrow}", va="center", fontsize=9)
    axes.set_xlim(0, longest * 1.45)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.invert_yaxis() if axes.get_subplotspec().is_first_col() else None  # type: ignore[union-attr]


def by_concurrency(results: list[Result]) -> Figure | None:
    """Draw the rate by concurrency, for each latency."""
    selected = select(results, table="a")
    latencies = sorted({each["latency"] for each in selected})
    if not latencies:
        return None
    figure, row = plt.subplots(
        1, len(latencies), figsize=(9, 3.6), sharey=True, layout="constrained", squeeze=False
    )
    for axes, latency in zip(row[0], latencies, strict=True):
        for peer, colour in COLOURS.items():
            runs = select(selected, latency=latency, peer=peer)
            levels = sorted({each["concurrency"] for each in runs})
            rates = [median(select(runs, concurrency=level), rate) for level in levels]
            axes.plot(
                levels,
                rates,
                marker="o",
                markersize=4,
                color=colour,
                label=peer,
                lw=2 if peer == OURS else 1.2,
            )
        axes.set(xscale="log", yscale="log", xlabel="concurrent calls", title=f"response time: {latency} ms")
        axes.grid(color="#dddddd")
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    row[0][0].set_ylabel("creations per second")
    figure.legend(*row[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def by_partners(results: list[Result]) -> Figure | None:
    """Draw the peak memory of the process by the number of partners."""
    selected = select(results, table="c")
    if not selected:
        return None
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    styles = {"streamed": "-", "streamed, duplicates allowed": ":", "awaited": "--"}
    for peer in (OURS, BARE):
        for form, style in styles.items():
            runs = sorted(select(selected, peer=peer, form=form), key=lambda each: int(each["created"]))
            if runs:
                label = f"{peer}, {form}" if peer == OURS else f"{peer}, a task each"
                xs, ys = [each["created"] for each in runs], [each["peak_kb"] / 1024 for each in runs]
                axes.plot(xs, ys, style, marker="o", markersize=4, color=COLOURS[peer], label=label)
    axes.set(xscale="log", yscale="log", xlabel="partners", ylabel="peak memory of the process, MB")
    axes.set_yticks([50, 100, 200, 500, 1_000, 2_000])
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(color="#dddddd")
    axes.legend()
    return figure


def loop_delays(results: list[Result]) -> Figure | None:
    """Draw the delay of the event loop, at the median and the 99th percentile."""
    selected = select(results, table="f")
    latencies = sorted({each["latency"] for each in selected})
    if not latencies:
        return None
    figure, row = plt.subplots(
        1, len(latencies), figsize=(9, 2.6), sharey=True, layout="constrained", squeeze=False
    )
    groups = [(OURS, "a bulk run"), (BARE, "a bulk run"), (BARE, "nothing")]
    names = [f"{OURS}, bulk run", f"{BARE}, bulk run", "idle loop"]
    for axes, latency in zip(row[0], latencies, strict=True):
        for position, (peer, beside) in enumerate(groups):
            runs = select(selected, latency=latency, peer=peer, beside=beside)
            colour = COLOURS[peer] if beside == "a bulk run" else "#888888"
            for shift, name, alpha in ((-0.2, "p50", 0.5), (0.2, "p99", 1.0)):
                value = median(runs, lambda each, name=name: each["late"][name] * 1_000)  # type: ignore[misc]
                axes.barh(position + shift, value, height=0.36, color=colour, alpha=alpha)
                axes.text(value, position + shift, f" {name} {value:.1f}", va="center", fontsize=9)
        axes.set(title=f"response time: {latency} ms", xlabel="delay, ms")
        axes.margins(x=0.3)
        axes.set_xlim(left=0)
    row[0][0].set_yticks(range(len(names)), names)
    row[0][0].invert_yaxis()
    return figure


CHARTS = {
    "creating-by-client": by_client,
    "creating-by-concurrency": by_concurrency,
    "creating-memory": by_partners,
    "creating-loop": loop_delays,
}


def draw(results: list[Result], folder: Path) -> None:
    """Draw the charts for which there are results."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, chart in CHARTS.items():
            figure = chart(results)
            if figure is not None:
                (folder / f"{name}.svg").write_text(to_svg(figure), encoding="utf-8")
                plt.close(figure)


def to_svg(figure: Figure) -> str:
    """Return the figure as SVG, with coordinates rounded to one digit, which halves its size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", buffer.getvalue())


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
