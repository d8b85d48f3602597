"""Reads config/contacts.toml: which role is told of what, how it is reached, and within how many minutes it answers.

Whom to call when nobody answers is the business of Alertmanager, PagerDuty and the like.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.notices import PRIORITIES

CONTACTS_FILE = Path("config/contacts.toml")
FIELDS = {"role": str, "when": str, "reach": str, "told_of": list, "channels": list}
OTHER_TABLES = ("response_minutes", "status_pages")


@dataclass(frozen=True, slots=True)
class Contact:
    """One role; `channels` are written as in ALERT_CHANNELS."""

    level: str
    role: str = ""
    when: str = ""
    reach: str = ""
    told_of: tuple[str, ...] = PRIORITIES
    channels: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Who that is and how they are reached."""
        return f"{self.level} {self.role}".strip() + (f": {self.reach}" if self.reach else "")


@dataclass(frozen=True, slots=True)
class Contacts:
    """All roles, in the order of the file; without the file there are none."""

    people: tuple[Contact, ...] = ()
    response_minutes: Mapping[str, int] = field(default_factory=dict)
    status_pages: Mapping[str, str] = field(default_factory=dict)

    def told_of(self, priority: str) -> list[Contact]:
        """Return who is told of a priority."""
        return [each for each in self.people if priority in each.told_of]


def read_contacts(path: Path = CONTACTS_FILE) -> Contacts:
    """Read the file. Raises ConfigurationError with one sentence for what is wrong in it."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Contacts()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigurationError(f"{path}: {error}") from error
    people = [_contact(path, level, table) for level, table in tables.items() if level not in OTHER_TABLES]
    minutes = tables.get("response_minutes", {})
    wrong = [str(name) for name in minutes if name not in PRIORITIES or not isinstance(minutes[name], int)]
    if wrong:
        raise ConfigurationError(f"{path}: [response_minutes] has P1 to P4 with whole minutes, not {wrong[0]}")
    return Contacts(tuple(people), minutes, {str(k): str(v) for k, v in tables.get("status_pages", {}).items()})


def _contact(path: Path, level: str, table: Any) -> Contact:
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: {level} is no table of a role: write [{level}] above its lines")
    for name, value in table.items():
        kind = FIELDS.get(name)
        if kind is None:
            raise ConfigurationError(f"{path}: [{level}] has {name!r}; a role has {', '.join(FIELDS)}")
        if not isinstance(value, kind) or (kind is list and not all(isinstance(each, str) for each in value)):
            expected = "a list of texts" if kind is list else "a text"
            raise ConfigurationError(f"{path}: {name} of [{level}] must be {expected}")
    told_of = tuple(table.get("told_of", PRIORITIES))
    if unknown := [each for each in told_of if each not in PRIORITIES]:
        raise ConfigurationError(f"{path}: told_of of [{level}] has {unknown[0]!r}; it takes P1, P2, P3 and P4")
    texts = {name: table.get(name, "") for name in ("role", "when", "reach")}
    return Contact(level, **texts, told_of=told_of, channels=tuple(table.get("channels", ())))
