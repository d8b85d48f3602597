"""Draws the queries of config/grafana_dashboard.json, answered by a Prometheus, as a picture: a stand-in for Grafana.

    python scripts/draw_dashboard.py --url http://127.0.0.1:9690 --minutes 60 --output docs/dashboard.png

Needs matplotlib, which nothing else here does: pip install matplotlib. What Grafana shows looks different.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

DASHBOARD = Path(__file__).resolve().parents[1] / "config" / "grafana_dashboard.json"
POINTS = 240
COLUMNS = 6
FEW = 100  # numbers above it are shown without fractions
SCALES = {"bytes": (1e6, "MB"), "Bps": (1e3, "kB/s"), "percentunit": (0.01, "%")}
UNITS = {"s": "s", "mps": "messages/s", "cpm": "per min", "cps": "per s", "short": ""}


def main() -> None:
    """Draw it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--url", default="http://127.0.0.1:9690", help="the Prometheus")
    options.add_argument("--minutes", type=float, default=60, help="how far to look back")
    options.add_argument("--until", type=float, default=time.time(), help="Unix time of the right edge")
    options.add_argument("--output", type=Path, default=Path("docs/dashboard.png"))
    given = options.parse_args()
    draw(given.url, given.until - given.minutes * 60, given.until, given.output)


def draw(url: str, start: float, end: float, output: Path) -> None:
    """Draw all panels of the dashboard between two Unix times."""
    dashboard = json.loads(DASHBOARD.read_text())
    rows = sorted({panel["gridPos"]["y"] for panel in dashboard["panels"]})
    heights = [0.14 if _is_row(dashboard, y) else 1.0 for y in rows]
    figure = plt.figure(figsize=(18, 2.3 * sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(rows), COLUMNS, height_ratios=heights)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        left, width = place["x"] * COLUMNS // 24, max(1, place["w"] * COLUMNS // 24)
        axes = figure.add_subplot(grid[rows.index(place["y"]), left : left + width])
        if panel["type"] == "row":
            axes.axis("off")
            axes.text(0, 0.5, panel["title"], fontsize=15, weight="bold", va="center")
        else:
            _panel(axes, panel, url, start, end)
    figure.suptitle(
        "The panels' queries against a live Prometheus, drawn with matplotlib; Grafana looks different",
        fontsize=11,
    )
    figure.savefig(output, dpi=70)


def _is_row(dashboard: dict[str, Any], y: int) -> bool:
    return any(panel["type"] == "row" for panel in dashboard["panels"] if panel["gridPos"]["y"] == y)


def _panel(axes: Any, panel: dict[str, Any], url: str, start: float, end: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    scale, unit = SCALES.get(defaults["unit"], (1.0, UNITS.get(defaults["unit"], defaults["unit"])))
    axes.set_title(f"{panel['title']}{f' ({unit})' if unit else ''}", fontsize=9, loc="left")
    lines = [
        (_legend(target["legendFormat"], series["metric"]), series["values"])
        for target in panel["targets"]
        for series in _ask(url, target["expr"], start, end)
    ]
    if panel["type"] == "stat":
        axes.axis("off")
        last = float(lines[0][1][-1][1]) / scale if lines else 0.0
        value = f"{last:,.0f}" if last == int(last) or last > FEW else f"{last:.2g}"
        axes.text(0.5, 0.4, value, fontsize=26, ha="center", va="center", transform=axes.transAxes)
        return
    for name, values in lines:
        points = _with_gaps([(at, float(value) / scale) for at, value in values], 1.5 * (end - start) / POINTS)
        minutes = [(at - end) / 60 for at, _ in points]
        shown = [value for _, value in points]
        style = "steps-post" if panel["type"] == "state-timeline" else "default"
        axes.plot(minutes, shown, linewidth=1, drawstyle=style, label=name)
    _frame(axes, bool(lines), (start - end) / 60)


def _with_gaps(points: list[tuple[float, float]], longest: float) -> list[tuple[float, float]]:
    """Points with a hole wherever the series was absent: a line across it would be a measurement nobody made."""
    found = points[:1]
    for before, point in pairwise(points):
        found += [(before[0], math.nan)] if point[0] - before[0] > longest else []
        found.append(point)
    return found


def _frame(axes: Any, drawn: bool, left: float) -> None:
    axes.set_xlim(left, 0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend(fontsize=6, loc="upper left", framealpha=0.5)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    else:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, color="grey")


def _legend(written: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), written)


def _ask(url: str, expression: str, start: float, end: float) -> list[dict[str, Any]]:
    """The series of an expression; the variables of the dashboard stand for everything."""
    everything = {"$job": ".+", "$instance": ".+", "$account": ".+", "$__rate_interval": "1m"}
    for variable, value in (everything | {"$__range": f"{int(end - start)}s"}).items():
        expression = expression.replace(variable, value)
    wanted = {"query": expression, "start": start, "end": end, "step": (end - start) / POINTS}
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{urllib.parse.urlencode(wanted)}", timeout=60) as answer:  # noqa: S310 - http
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


if __name__ == "__main__":
    main()
