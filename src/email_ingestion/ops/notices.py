"""What people are told: alerts that are active, alerts that are over, and texts of operators; it sends nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

PRIORITIES = ("P1", "P2", "P3", "P4")
# The severities of other houses, by ours; docs/runbooks/incident_response.md has them as a table.
CROSSWALK = {"P0": "P1", "SEV1": "P1", "SEV2": "P2", "SEV3": "P3", "SEV4": "P4"}
OF_SEVERITY = {"critical": "P2", "warning": "P3", "info": "P4", "none": "P4"}


def priority_of(severity: str) -> str | None:
    """Return our priority for the name of a severity, P1 to P4; None when nobody uses that name."""
    name = severity.strip()
    return name if name in PRIORITIES else CROSSWALK.get(name.upper(), OF_SEVERITY.get(name.lower()))


@dataclass(frozen=True, slots=True)
class NoticeItem:
    """One alert, or a text without a `key`. `over`: it is not active any more."""

    key: str
    priority: str
    sentence: str
    link: str = ""
    over: bool = False


@dataclass(frozen=True, slots=True)
class Notification:
    """One message about all alerts that are new, due for repetition or over."""

    items: tuple[NoticeItem, ...]

    @classmethod
    def of_text(cls, priority: str, text: str) -> Notification:
        """Make one of an operator's own words."""
        return cls((NoticeItem("", priority, text),))

    @property
    def firing(self) -> tuple[str, ...]:
        """The keys of the active alerts."""
        return tuple(item.key for item in self.items if not item.over)

    @property
    def resolved(self) -> tuple[str, ...]:
        """The keys of those that are over."""
        return tuple(item.key for item in self.items if item.over)

    @property
    def title(self) -> str:
        """The first alert, and how many more there are."""
        lines = self._lines()
        first = lines[0] if lines else f"over: {', '.join(self.resolved)}"
        return f"email-ingestion: {first}" + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")

    @property
    def body(self) -> str:
        """Every alert with the section of the runbook that ends it."""
        links = [item.link for item in self.items if not item.over]
        paragraphs = [f"{line}\n{link}".rstrip() for line, link in zip(self._lines(), links, strict=True)]
        return "\n\n".join([*paragraphs, *(f"over: {key}" for key in self.resolved)])

    def only(self, priorities: Collection[str] | None) -> Notification | None:
        """Return what of it is of these priorities, None for all of them; None when nothing is."""
        kept = tuple(item for item in self.items if priorities is None or item.priority in priorities)
        return Notification(kept) if kept else None

    def _lines(self) -> list[str]:
        return [f"[{item.priority}] {_one_line(item.sentence)}" for item in self.items if not item.over]


def _one_line(text: str) -> str:
    """Return a text without line ends and control characters: a server's words, or an operator's, may be in it."""
    return "".join(each if each.isprintable() else " " for each in text)
