"""The rule file as Python sees it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).resolve().parents[2] / "config"
ALERTS = CONFIG / "alerts.yml"


def groups(path: Path = ALERTS) -> list[dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where it is there, is ten times as quick
    return yaml.load(path.read_text(), loader)["groups"]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"] if "alert" in rule]


def recorded() -> dict[str, str]:
    """Expressions by the name they are recorded under."""
    return {rule["record"]: str(rule["expr"]) for group in groups() for rule in group["rules"] if "record" in rule}


def expressions() -> list[str]:
    return [str(rule["expr"]) for group in groups() for rule in group["rules"]]


def metrics() -> set[str]:
    """Every metric of ours that an expression reads."""
    return {name for expression in expressions() for name in re.findall(r"\bemail_ingestion_[a-z0-9_]+", expression)}
