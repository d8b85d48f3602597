"""What the pages tell people to type: every command of every block, and of the text between them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from email_ingestion.cli.main import COMMANDS
from tests.servers.processes import ROOT
from tests.unit.test_docs import PAGES, SHELLS, inline, tokens

LISTED = Path(__file__).with_name("documented.toml")
OTHER_LANGUAGES = {"python", "toml", "json", "sql", "sqlite", "postgresql", "mermaid"}
# How a command begins where nothing says that it is one.
PROGRAMS = (
    r"(?:\.venv[\w.-]*/bin/)?(?:email-ingestion|python3?|pip|pytest|mypy) (?!-[- ])",
    r"(?:\./)?(?:scripts/[\w.-]+|producer\.py|worker\.py) ",
    r"\./scripts/[\w.-]+$",
    r"(?:sudo|systemctl|systemd-analyze|docker|kubectl|prometheus|prometheus-alertmanager|promtool) ",
    r"(?:curl|wget|jq|cp|mv|tail|grep|rsync|zstd|sha256sum|psql|sqlite3|apt-get|git|redis-cli|kill|make) ",
)
COMMAND = re.compile(rf"(?:[A-Z][A-Z0-9_]*=\S+ +)*(?:{'|'.join(PROGRAMS)})")
SHORT = re.compile(rf"({'|'.join(COMMANDS)}) [^/]")  # how a table of docs/operating.md names them


@dataclass(frozen=True)
class Listed:
    """Why a command is not run by the test of its page: another test runs it, or there is a reason."""

    page: str
    text: str
    run_by: str = ""
    reason: str = ""

    def matches(self, page: Path, command: str) -> bool:
        return fnmatch(relative(page), self.page) and bool(re.fullmatch(self.text, command))


@cache
def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def listed() -> list[Listed]:
    return [Listed(**each) for each in tomllib.loads(LISTED.read_text())["command"]]


def pages() -> list[Path]:
    """All but the runbooks, which have drills and a list of their own."""
    return [path for path in PAGES if "runbooks" not in path.parts]


@cache
def commands(page: Path) -> list[str]:
    """Return everything on a page that can be typed, once each, in its order."""
    return list(dict.fromkeys([*_of_blocks(page), *_of_text(page)]))


def to_run(page: Path, exceptions: list[Listed]) -> list[str]:
    """Return the commands of a page that its test runs; of the page that a script writes, what no other page has."""
    elsewhere = _of_other_pages(page, exceptions) if page.name == "cli.md" else set()
    return [
        command
        for command in commands(page)
        if _bare(command) not in elsewhere and not any(each.matches(page, command) for each in exceptions)
    ]


def _of_other_pages(page: Path, exceptions: list[Listed]) -> set[str]:
    return {_bare(command) for other in pages() if other != page for command in to_run(other, exceptions)}


def _bare(command: str) -> str:
    return command.removeprefix(".venv/bin/")


def _of_blocks(page: Path) -> Iterator[str]:
    """Every line of a shell block, whatever it begins with; of a block that does not say what it is, what looks so."""
    for token in tokens(page):
        language = token.info.strip() if token.type == "fence" else ""
        if token.type not in {"fence", "code_block"} or language in OTHER_LANGUAGES:
            continue
        assert language in SHELLS | {""}, f"{page.name}: what is a block of {language!r}?"
        for line in token.content.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s+)#.*", "", line).strip()
            if command and (language in SHELLS or COMMAND.match(command)):
                yield command


def _of_text(page: Path) -> Iterator[str]:
    for token in inline(page, "code_inline"):
        command = token.content.strip()
        if page.name == "operating.md" and SHORT.match(command):
            command = f"email-ingestion {command}"
        if COMMAND.match(command):
            yield command
