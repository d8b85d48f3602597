"""The settings as they may be shown: every one with its effective value and its origin, and without a secret."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from email_ingestion.settings.definitions import Settings
from email_ingestion.settings.masking import MASK, is_secret, mask_url
from email_ingestion.settings.sources import origins


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """One setting as it may be shown."""

    name: str
    value: str  # empty when it has none
    origin: str  # a file, the environment, or `default`


def effective_settings(settings: Settings) -> Iterator[EffectiveSetting]:
    """Yield every setting, in the order of `Settings`."""
    places = origins(Settings)
    names = {field.upper() for field in Settings.model_fields}
    for field in Settings.model_fields:
        name = field.upper()
        by_file = None if f"{name}_FILE" in names else places.get(f"{name}_FILE")
        origin = places.get(name) or (f"{name}_FILE in {by_file}" if by_file else "default")
        yield EffectiveSetting(name, _masked_value(name, getattr(settings, field)), origin)


def _masked_value(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "ACCOUNTS":
        return ",".join(str(table.get("name", "default")) for table in value)
    if name.endswith(("_URL", "_URI", "_ENDPOINT")):
        return mask_url(str(value))
    if name == "SINKS":
        return ",".join(map(mask_url, value))
    if is_secret(name) and not isinstance(value, int | float):
        return MASK if value else ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
