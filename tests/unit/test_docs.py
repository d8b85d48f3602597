"""What the documents name exists, and what there is the documents name; their links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from click import Command, Context
from markdown_it import MarkdownIt
from markdown_it.token import Token

from email_ingestion.cli.main import app
from email_ingestion.settings import Settings
from scripts.cli_reference import reference
from tests.drills.runbook import parse
from tests.servers.missing import program

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        ROOT / "deploy" / "README.md",
    ]
)
PAGES = [path for path in DOCS if path.exists() and path.name != "CHANGELOG.md"]
SOURCES = (
    "src",
    "config",
    "scripts",
    "deploy",
    "tests",
    "bench",
    "examples",
    "pyproject.toml",
    "producer.py",
    "worker.py",
    "Makefile",
)
TEXT = {
    ".py",
    ".toml",
    ".sh",
    ".ps1",
    ".yml",
    ".yaml",
    ".json",
    ".conf",
    ".lua",
    ".sql",
    ".service",
    ".timer",
    ".example",
    "",
}
REPOSITORY = ("config/", "deploy/", "docs/", "scripts/", "src/", "tests/", "bench/", "examples/")
TABLES = {"accounts", "routes"}  # of config/settings.toml; docs/accounts.md and docs/sinks.md
MADE_BY_OPERATORS = ("config/settings.toml", "config/contacts.toml", "docs/incidents", "docs/drills.md")
METRIC = re.compile(r"email_ingestion_[a-z0-9_]+")
SETTING = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
WORD = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)+")
SHELLS = {"bash", "sh", "shell"}
# What people type differs from what scripts should be: unquoted variables, `ps | grep`, `cd` without a check.
TYPED = "SC2086,SC2046,SC2009,SC2164,SC1091,SC2034,SC2148,SC2012,SC2155,SC2010"


@cache
def tokens(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text())


@cache
def anchors(path: Path) -> frozenset[str]:
    return parse(path.read_text(), path).anchors


def inline(path: Path, kind: str) -> Iterator[Token]:
    for token in tokens(path):
        yield from (child for child in token.children or () if child.type == kind)


def fences(path: Path, languages: set[str]) -> Iterator[str]:
    for token in tokens(path):
        if token.type == "fence" and token.info.strip() in languages:
            yield token.content


def code(path: Path) -> list[str]:
    """Everything written as code."""
    blocks = [token.content for token in tokens(path) if token.type in {"fence", "code_block"}]
    return [*blocks, *(token.content for token in inline(path, "code_inline"))]


def test_the_page_of_servers_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+\.py)`", (ROOT / "docs" / "servers.md").read_text()))
    assert len(named) > 10
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def test_the_index_by_reader_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {
        page for page in pages if not page.startswith("decisions/") and page != "README.md" and f"({page}" not in index
    } == set()


@cache
def sources() -> str:
    """All that is not documentation."""
    files = [
        path for name in SOURCES for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
    ]
    return "\n".join(path.read_text(errors="ignore") for path in files if path.is_file() and path.suffix in TEXT)


@cache
def words() -> frozenset[str]:
    return frozenset(re.findall(r"\w+", sources()))


@cache
def commands() -> dict[str, Command]:
    """Every command of the program, by the words that call it."""
    found: dict[str, Command] = {}
    top = typer.main.get_command(app)

    def gather(group: Any, before: str) -> None:
        context = Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command
            found[f"{before}{name}"] = command
            if is_group(command):
                gather(command, f"{before}{name} ")

    gather(top, "")
    return found


def is_group(command: Command) -> bool:
    return hasattr(command, "list_commands")


def calls(path: Path) -> Iterator[list[str]]:
    """The words after `email-ingestion`, wherever a page calls it."""
    for text in code(path):
        for line in text.replace("\\\n", " ").splitlines():
            for call in re.findall(r"(?:^|[\s/(|;&`])(?<!-[gou] )email-ingestion ([a-z][^|;&)>#\n]*)", line):
                try:
                    yield shlex.split(call)
                except ValueError:  # a quotation that goes on in the next line
                    yield call.split()


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


every_page = pytest.mark.parametrize("path", PAGES, ids=ids(PAGES))


@every_page
def test_links_and_anchors_resolve(path: Path) -> None:
    for link in inline(path, "link_open"):
        target, _, anchor = str(link.attrs["href"]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{path.name}: {target}#{anchor}"


@every_page
def test_metrics_settings_and_words_of_the_code_exist(path: Path) -> None:
    for text in code(path):
        assert [name for name in METRIC.findall(text) if not _metric(name)] == []
    settings = {f"{name.upper()}{suffix}" for name in Settings.model_fields for suffix in ("", "_FILE")}
    for token in inline(path, "code_inline"):
        named = SETTING.fullmatch(token.content.partition("=")[0])
        assert not named or named[0] in settings | words(), token.content
        told = WORD.fullmatch(token.content) and not METRIC.fullmatch(token.content)
        assert not told or token.content in words(), token.content


@cache
def metrics() -> frozenset[str]:
    """What our processes show; a test keeps this list and the code equal."""
    return frozenset(METRIC.findall((ROOT / "docs" / "metrics.md").read_text()))


def _metric(name: str) -> bool:
    """Whether there is this metric, this part of a histogram, or any that begins so."""
    whole = re.sub(r"_(bucket|sum|count)$", "", name)
    return {name, whole} & metrics() or (name.endswith("_") and any(each.startswith(name) for each in metrics()))


@every_page
def test_alerts_exist(path: Path) -> None:
    known = re.findall(r"alert: (\w+)", (ROOT / "config" / "alerts.yml").read_text())
    assert set(re.findall(r"EmailIngestion[A-Z]\w+", "\n".join(code(path)))) <= {*known, "EmailIngestionError"}


@every_page
def test_files_of_the_repository_exist(path: Path) -> None:
    for text in code(path):
        for named in re.findall(r"(?<![\w/.~:-])(?:\./)?((?:[\w.-]+/)+[\w.*-]+)", text):
            if named.startswith(REPOSITORY) and not named.startswith(MADE_BY_OPERATORS):
                there = named.rstrip(".")
                assert list(ROOT.glob(there)), named


@every_page
def test_commands_and_their_options_exist(path: Path) -> None:
    for call in calls(path):
        name = next((" ".join(call[:n]) for n in (3, 2, 1) if " ".join(call[:n]) in commands()), None)
        assert name, f"email-ingestion {' '.join(call)}"
        command = commands()[name]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in call if re.match(r"-{1,2}[a-z]", word)}
        if not command.context_settings.get("ignore_unknown_options"):
            assert given <= options | {"--help"}, f"email-ingestion {' '.join(call)}"


def test_every_command_is_named_somewhere() -> None:
    written = "\n".join(text for path in PAGES if path.name != "cli.md" for text in code(path))
    leaves = [name for name, command in commands().items() if not is_group(command)]
    assert [name for name in leaves if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", written)] == []


def test_the_page_of_all_commands_is_what_they_say() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "python scripts/cli_reference.py makes it anew"


def test_every_setting_is_named_somewhere() -> None:
    example = (ROOT / "config" / ".env.example").read_text()
    assert [
        name.upper() for name in Settings.model_fields if f"{name.upper()}=" not in example and name not in TABLES
    ] == []


def test_shells_understand_what_is_to_be_typed(tmp_path: Path) -> None:
    shellcheck = program("shellcheck", "shellcheck")
    for path in PAGES:
        for number, text in enumerate(fences(path, SHELLS)):
            (tmp_path / f"{path.stem}-{number}.sh").write_text(text)
    files = sorted(map(str, tmp_path.glob("*.sh")))
    done = subprocess.run(
        [shellcheck, "--shell=bash", "--format=gcc", f"--exclude={TYPED}", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
