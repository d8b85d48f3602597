"""The dashboard as Python sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parents[2] / "config" / "grafana_dashboard.json"
# What Grafana puts in the place of its variables, for a look at everything.
VALUES = {"$job": ".+", "$instance": ".+", "$account": ".+", "$__rate_interval": "1m", "$__range": "1h"}


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def targets() -> list[tuple[str, str]]:
    """The title of the panel and the expression, variables and all, of every query."""
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def filled(expression: str) -> str:
    """An expression as Prometheus gets it."""
    for variable, value in VALUES.items():
        expression = expression.replace(variable, value)
    return expression
