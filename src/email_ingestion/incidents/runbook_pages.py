"""Reads the runbooks as an operator does: finds the section of an alert or a word, and its commands in their order.

The pages are those of the working directory, else those that come with the product. It runs nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from email_ingestion.errors import ConfigurationError
from email_ingestion.shipped_files import here_or_shipped

RUNBOOKS = Path("docs/runbooks")
INCIDENTS = "incident_response.md"
ALERT_PREFIX = "EmailIngestion"
COMMAND_SECONDS = 60.0
_HEADING = re.compile(r"^(#{1,3}) (.+)$", re.MULTILINE)
_NUMBER = re.compile(r"^(\d+(?:\.\d+)?)\.? (.+)$")
_COMMENT = re.compile(r"[ \t]*<!--.*?-->", re.DOTALL)
_BLOCK = re.compile(
    r"<!--\s*step:(?P<attributes>.*?)-->|^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```[ ]*$",
    re.DOTALL | re.MULTILINE,
)
_ALERTS = re.compile(rf"\b{ALERT_PREFIX}(\w+)")
_OTHER_NAMES = re.compile(r"^Also called: ((?:.+\n)+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class RunbookStep:
    """A command of a page; `rc` None: any exit code. `instead_of` is the id of the step it is an alternative to."""

    id: str
    phase: str
    command: str
    rc: int | None = 0
    match: str = ""
    no_match: str = ""
    timeout: float = COMMAND_SECONDS
    retry: float = 0.0
    skip: str = ""  # why it is not run
    instead_of: str = ""
    background: bool = False  # it stays in the foreground of a terminal

    def lacks(self, code: int | None, output: str) -> str:
        """Return what is not as the page says, as a sentence; empty when all is."""
        if code is None:
            return f"it did not end within {self.timeout:.0f} s"
        if self.rc is not None and code != self.rc:
            return f"exit code {code}, the page expects {self.rc}"
        if self.match and not re.search(self.match, output, re.MULTILINE):
            return f"nothing there matches {self.match!r}"
        if self.no_match and re.search(self.no_match, output, re.MULTILINE):
            return f"something there matches {self.no_match!r}"
        return ""


@dataclass(frozen=True, slots=True)
class RunbookSection:
    """One section of the incident runbook, or another page as a whole; `number` is empty there."""

    page: str
    number: str
    title: str
    source: str

    @property
    def heading(self) -> str:
        """Its number and title, or its title and page."""
        return f"{self.number} {self.title}" if self.number else f"{self.title} ({self.page})"

    @property
    def text(self) -> str:
        """What a reader sees: without the comments that the drills read."""
        seen = re.sub(r'<a id="[^"]*"></a>\n*', "", _COMMENT.sub("", self.source))
        return re.sub(r"\n{3,}", "\n\n", seen).strip().removesuffix("---").strip() + "\n"

    @property
    def alerts(self) -> frozenset[str]:
        """The alerts that lead here, without their common beginning."""
        line = re.search(r"^Alerts: ((?:.+\n)+)", self.source, re.MULTILINE)
        return frozenset(_ALERTS.findall(line[1])) if line else frozenset()

    @property
    def other_names(self) -> frozenset[str]:
        """What other systems call such an alert, in small letters."""
        found = _OTHER_NAMES.search(self.source)
        return frozenset(re.split(r",\s+", " ".join(found[1].split()).rstrip(".").casefold())) if found else frozenset()

    def steps(self) -> list[RunbookStep]:
        """Return the commands in the order of the page; a block that no comment describes is not one of them."""
        return list(_steps(self.source))


def read_sections() -> list[RunbookSection]:
    """Return all sections, the incident runbook's first. Raises ConfigurationError when there are no pages."""
    folder = here_or_shipped(RUNBOOKS)
    try:
        pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the runbooks in {folder} cannot be read: {error}") from error
    if not pages:
        raise ConfigurationError(f"there are no runbooks in {folder}")
    incidents = list(_sections(pages.pop(INCIDENTS, "")))
    return incidents + [
        RunbookSection(name, "", heading[2] if (heading := _HEADING.search(text)) else name, text)
        for name, text in pages.items()
    ]


def search_sections(words: str) -> list[RunbookSection]:
    """Return the sections for a number, an alert, a name that others use, or words; the first kind that fits wins."""
    wanted = " ".join(words.split()).casefold()
    alert = wanted.removeprefix(ALERT_PREFIX.casefold())
    sections = read_sections()
    ways: tuple[Callable[[RunbookSection], bool], ...] = (
        lambda each: wanted in {each.number, each.page.casefold(), each.page.removesuffix(".md").casefold()},
        lambda each: alert in {name.casefold() for name in each.alerts},
        lambda each: wanted in each.other_names,
        lambda each: wanted in each.title.casefold(),
        lambda each: any(wanted in name or name in wanted for name in each.other_names),
        lambda each: bool(alert) and any(alert in name.casefold() for name in each.alerts),
        lambda each: all(word in each.text.casefold() for word in wanted.split()),
    )
    return next((found for way in ways if (found := [each for each in sections if way(each)])), [])


def _sections(text: str) -> Iterator[RunbookSection]:
    """Cut the page at its headings; a chapter that has sections is what stands above the first of them."""
    fenced = [(block.start(), block.end()) for block in _BLOCK.finditer(text) if block["body"] is not None]
    headings = [
        each for each in _HEADING.finditer(text) if not any(start < each.start() < end for start, end in fenced)
    ]
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        if numbered := _NUMBER.match(heading[2]):
            source = text[heading.start() : following.start() if following else len(text)]
            yield RunbookSection(INCIDENTS, numbered[1], numbered[2], source)


def _steps(text: str) -> Iterator[RunbookStep]:
    described: Mapping[str, str] | None = None
    for number, block in enumerate(_BLOCK.finditer(text), start=1):
        if block["attributes"] is not None:
            described = dict(word.partition("=")[::2] for word in shlex.split(block["attributes"]))
            if "run" in described:
                yield _step(number, described, described["run"])
                described = None
        elif described is not None:
            indent = len(block["indent"])
            body = "\n".join(line[indent:] for line in block["body"].rstrip("\n").split("\n"))
            yield _step(number, described, body)
            described = None


def _step(number: int, given: Mapping[str, str], command: str) -> RunbookStep:
    code = given.get("rc", "0")
    return RunbookStep(
        given.get("id") or f"step-{number}",
        given.get("phase", ""),
        command.strip("\n"),
        None if code == "any" else int(code),
        given.get("match", ""),
        given.get("no-match", ""),
        float(given.get("timeout", COMMAND_SECONDS)),
        float(given.get("retry", 0.0)),
        given.get("skip", "") or ("it is for Windows" if given.get("platform") == "windows" else ""),
        given.get("instead-of", ""),
        given.get("background") == "yes",
    )
