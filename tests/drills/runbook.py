"""Reads executable runbooks: Markdown whose HTML comments say what each command must show. Runs nothing.

<!-- drill: scenario=NAME alerts=A,B heals=by-hand|itself [soak] -->      below a procedure's heading
<!-- symptom: ready=503 [within=S] [process=worker] -->                   beside a bullet
<!-- step: id=ping phase=diagnosis rc=1 match="…" healthy-match=PONG -->  above a fence
<!-- step: run="redis-cli DBSIZE" phase=mitigation -->                    for a command in the prose
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import jmespath
from jmespath.exceptions import JMESPathError
from markdown_it import MarkdownIt
from markdown_it.token import Token

PHASES = ("diagnosis", "mitigation", "verify", "afterwards")
HEALS = ("by-hand", "itself")
HEALTHY = "healthy"  # how scenarios begin whose procedures need no fault
SYMPTOMS = ("ready", "breaker", "log", "metric", "alert", "refused", "dead", "status", "grows", "stands")
# What a reader would type: inline code that begins with one of these is a command.
EXECUTABLES = (
    *("redis-cli", "redis-server", "curl", "python", "systemctl", "telnet", "openssl", "tail", "cat", "ps"),
    *("email-ingestion", ".venv/bin/email-ingestion", "./scripts/", "grep", "kill", "df", "du", "jq", "promtool"),
    *("amtool", "docker", "kubectl", "pip", "psql", "sqlite3", "journalctl", "git"),
)
COMMENT = re.compile(r"<!--\s*(drill|step|symptom):(.*?)-->", re.DOTALL)
ANCHOR = re.compile(r'<a id="([^"]+)"></a>')
DEFAULT_SECONDS = 30.0  # for a symptom to show
COMMAND_SECONDS = 60.0  # a command that takes longer hangs

OF_DRILL = frozenset({"scenario", "alerts", "heals", "soak"})
OF_SYMPTOM = frozenset({*SYMPTOMS, "equals", "within", "process"})
EVIDENCE = ("rc", "match", "no-match", "json", "equals")
OF_STEP = frozenset(
    {*EVIDENCE, *(f"healthy-{name}" for name in EVIDENCE), "id", "phase", "timeout", "retry", "stdin", "platform"}
    | {"background", "skip", "same", "reason", "run", "instead-of"}
)


class BadRunbook(Exception):
    """A page that cannot be drilled; says where and why."""


@dataclass(frozen=True, slots=True)
class Where:
    """A line of a page."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"

    def refuse(self, text: str) -> NoReturn:
        raise BadRunbook(f"{self}: {text}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a command must show. `rc` None: any exit code."""

    rc: int | None = 0
    match: str = ""
    no_match: str = ""
    json: str = ""
    equals: Any = None

    @property
    def says_something(self) -> bool:
        return bool(self.rc != 0 or self.match or self.no_match or self.json)


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a page. `text` is literal."""

    where: Where
    id: str
    phase: str
    text: str
    fault: Evidence
    healthy: Evidence
    timeout: float = COMMAND_SECONDS
    retry: float = 0.0
    stdin: str = ""
    skip: str = ""  # why it is never run
    background: bool = False
    same: bool = False  # it shows the same with and without the fault
    instead_of: str = ""  # the id of the step it is the alternative to


@dataclass(frozen=True, slots=True)
class Symptom:
    """A promise that the fault shows, within so many seconds."""

    where: Where
    kind: str
    value: str
    equals: Any = None
    within: float = DEFAULT_SECONDS
    process: str = "producer"

    def __str__(self) -> str:
        return f"{self.kind}={self.value} of the {self.process} ({self.where})"


@dataclass(frozen=True, slots=True)
class Procedure:
    """A section that is drilled."""

    where: Where
    title: str
    anchor: str
    scenario: str
    alerts: frozenset[str]
    heals: str
    soak: bool
    steps: tuple[Step, ...]
    symptoms: tuple[Symptom, ...]

    @property
    def name(self) -> str:
        return f"{self.where.path.stem}#{self.anchor}"

    def steps_of(self, phase: str, variant: str = "") -> list[Step]:
        """The commands of a phase, in the order of the page.

        An alternative takes the place of the step it names when `variant` is its id, and is left out otherwise.
        """
        chosen = [step for step in self.steps if step.phase == phase]
        replaced = {step.instead_of for step in self.steps if step.id == variant}
        return [step for step in chosen if step.id not in replaced and (not step.instead_of or step.id == variant)]

    @property
    def variants(self) -> tuple[str, ...]:
        """The ids of the alternatives; each needs a drill of its own."""
        return tuple(step.id for step in self.steps if step.instead_of and not step.skip)


@dataclass(frozen=True, slots=True)
class Fence:
    """A block of code, and the step that covers it."""

    where: Where
    language: str
    text: str
    step: Step | None


@dataclass(frozen=True, slots=True)
class Inline:
    """A command in the prose."""

    where: Where
    text: str
    section: str  # the anchor of the drilled section it stands in, or empty


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page."""

    path: Path
    procedures: tuple[Procedure, ...]
    fences: tuple[Fence, ...]
    inline: tuple[Inline, ...]
    anchors: frozenset[str]


@dataclass
class _Section:
    """A heading with a `drill:` comment, while its parts are gathered."""

    where: Where
    title: str
    anchor: str
    end: int
    attributes: Mapping[str, str]
    steps: list[Step] = field(default_factory=list)
    symptoms: list[Symptom] = field(default_factory=list)


def read(path: Path) -> Page:
    """Parse a page. Raises BadRunbook with file and line."""
    return parse(path.read_text(encoding="utf-8"), path)


def pages(folder: Path) -> list[Page]:
    """All pages of a folder."""
    return [read(path) for path in sorted(folder.glob("*.md"))]


def parse(text: str, path: Path) -> Page:
    """Parse the text of a page. Raises BadRunbook with file and line."""
    return _Reader(text, path).page()


class _Reader:
    def __init__(self, text: str, path: Path) -> None:
        self._path = path
        self._tokens = MarkdownIt("commonmark").enable("table").parse(text)
        self._fences = [token for token in self._tokens if token.type == "fence"]
        self._comments = list(self._find(COMMENT, text))
        self._anchors = {found[1]: where.line for where, found in self._find(ANCHOR, text)}
        self._lines = text.count("\n") + 1
        self._sections = self._drilled()

    def page(self) -> Page:
        covered = self._cover()
        for section in self._sections:
            _check(section)
        return Page(
            self._path,
            tuple(map(_procedure, self._sections)),
            tuple(self._described(token, covered.get(id(token))) for token in self._fences),
            tuple(self._commands()),
            frozenset(self._anchors) | {_slug(title) for _, title, _ in self._headings()},
        )

    def _find(self, pattern: re.Pattern[str], text: str) -> Iterator[tuple[Where, re.Match[str]]]:
        """Matches outside of code blocks."""
        inside = {line for token in self._fences for line in range(*_lines(token))}
        for found in pattern.finditer(text):
            line = text.count("\n", 0, found.start())
            if line not in inside:
                yield Where(self._path, line + 1), found

    def _headings(self) -> Iterator[tuple[Where, str, int]]:
        for token, inline in zip(self._tokens, self._tokens[1:], strict=False):
            if token.type == "heading_open":
                yield Where(self._path, _lines(token)[0] + 1), inline.content, int(token.tag[1])

    def _drilled(self) -> list[_Section]:
        headings, found = list(self._headings()), []
        for where, comment in self._comments:
            if comment[1] != "drill":
                continue
            above = [number for number, heading in enumerate(headings) if heading[0].line < where.line]
            if not above:
                where.refuse("a drill comment stands below a heading")
            start, title, level = headings[above[-1]]
            if any(section.where == start for section in found):
                where.refuse(f"the section {title!r} already has a drill comment")
            after = (heading[0].line for heading in headings[above[-1] + 1 :] if heading[2] <= level)
            attributes = _attributes(where, comment[2], OF_DRILL)
            found.append(_Section(start, title, self._anchor(start, title), next(after, self._lines + 1), attributes))
        return found

    def _anchor(self, heading: Where, title: str) -> str:
        """An explicit anchor on one of the two lines above the heading, else the one that renderers make."""
        above = [name for name, line in self._anchors.items() if 0 < heading.line - line <= 2]
        return above[-1] if above else _slug(title)

    def _cover(self) -> dict[int, Step]:
        """Hang every comment up in its section; returns the step of each fence, by the token's id."""
        covered: dict[int, Step] = {}
        for where, comment in self._comments:
            kind, body = comment[1], comment[2]
            if kind == "drill":
                continue
            section = self._section(where)
            if kind == "symptom":
                section.symptoms.append(_symptom(where, _attributes(where, body, OF_SYMPTOM)))
                continue
            attributes = _attributes(where, body, OF_STEP)
            fence = None if "run" in attributes else self._fence_below(where, covered)
            step = _step(where, attributes, fence.content if fence else attributes["run"])
            section.steps.append(step)
            if fence:
                covered[id(fence)] = step
        return covered

    def _section(self, where: Where) -> _Section:
        """The innermost drilled section around a line."""
        around = [each for each in self._sections if each.where.line < where.line < each.end]
        if not around:
            where.refuse("this belongs to no section with a drill comment")
        return around[-1]

    def _fence_below(self, where: Where, covered: Mapping[int, Step]) -> Token:
        below = [token for token in self._fences if _lines(token)[0] + 1 > where.line]
        between = [other.line for other, found in self._comments if found[1] == "step" and "run=" not in found[2]]
        if not below or any(where.line < line <= _lines(below[0])[0] for line in between) or id(below[0]) in covered:
            where.refuse("no fence follows this step")
        return below[0]

    def _described(self, token: Token, step: Step | None) -> Fence:
        return Fence(Where(self._path, _lines(token)[0] + 1), token.info.strip(), token.content, step)

    def _commands(self) -> Iterator[Inline]:
        for token in self._tokens:
            for child in token.children or []:
                if child.type == "code_inline" and _is_command(child.content):
                    where = Where(self._path, _lines(token)[0] + 1)
                    around = [each for each in self._sections if each.where.line < where.line < each.end]
                    yield Inline(where, child.content, around[-1].anchor if around else "")


def _is_command(text: str) -> bool:
    return any(text == name or text.startswith((f"{name} ", "./scripts/")) for name in EXECUTABLES)


def _lines(token: Token) -> tuple[int, int]:
    start, end = token.map or (0, 0)
    return start, end


def _slug(title: str) -> str:
    """The anchor that renderers make of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _attributes(where: Where, body: str, known: frozenset[str]) -> dict[str, str]:
    try:
        words = shlex.split(body)
    except ValueError as error:
        where.refuse(f"{error} in {body.strip()!r}")
    attributes: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            where.refuse(f"there is no attribute {name!r}; did you mean {near!r}?")
        if name in attributes:
            where.refuse(f"{name} is given twice")
        attributes[name] = value
    return attributes


def _symptom(where: Where, given: Mapping[str, str]) -> Symptom:
    kinds = [kind for kind in SYMPTOMS if kind in given]
    if len(kinds) != 1:
        where.refuse(f"a symptom has exactly one of: {', '.join(SYMPTOMS)}")
    kind = kinds[0]
    if (kind == "status") != ("equals" in given):
        where.refuse("status=JMESPATH and equals=JSON go together")
    if kind == "status":
        _expression(where, given[kind])
    return Symptom(
        where,
        kind,
        given[kind],
        _json(where, given["equals"]) if "equals" in given else None,
        _seconds(where, given, "within", DEFAULT_SECONDS),
        given[kind] if kind in {"refused", "dead"} else given.get("process", "producer"),
    )


def _step(where: Where, given: Mapping[str, str], text: str) -> Step:
    if given.get("phase") not in PHASES:
        where.refuse(f"a step has a phase: {', '.join(PHASES)}")
    if "skip" in given and not given["skip"]:
        where.refuse("skip needs a reason")
    if "same" in given and not given.get("reason"):
        where.refuse("same=yes needs a reason")
    windows = given.get("platform") == "windows"
    return Step(
        where,
        given.get("id") or f"line-{where.line}",
        given["phase"],
        text.strip("\n"),
        _evidence(where, given, ""),
        _evidence(where, given, "healthy-"),
        _seconds(where, given, "timeout", COMMAND_SECONDS),
        _seconds(where, given, "retry", 0.0),
        given.get("stdin", ""),
        given.get("skip") or ("a command for Windows" if windows else ""),
        background=given.get("background") == "yes",
        same=given.get("same") == "yes",
        instead_of=given.get("instead-of", ""),
    )


def _evidence(where: Where, given: Mapping[str, str], prefix: str) -> Evidence:
    rc = given.get(f"{prefix}rc", "0")
    if rc != "any" and not rc.isdigit():
        where.refuse(f"{prefix}rc is a number or any, not {rc!r}")
    patterns = [given.get(f"{prefix}{name}", "") for name in ("match", "no-match")]
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            where.refuse(f"{pattern!r} is no regular expression: {error}")
    path, equals = given.get(f"{prefix}json", ""), given.get(f"{prefix}equals")
    if bool(path) != (equals is not None):
        where.refuse(f"{prefix}json and {prefix}equals go together")
    if path:
        _expression(where, path)
    wanted = None if equals is None else _json(where, equals)
    return Evidence(None if rc == "any" else int(rc), *patterns, path, wanted)


def _expression(where: Where, text: str) -> None:
    try:
        jmespath.compile(text)
    except JMESPathError as error:
        where.refuse(f"{text!r} is no JMESPath: {error}")


def _json(where: Where, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where.refuse(f"{text!r} is no JSON: {error}")


def _seconds(where: Where, given: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(given.get(name, default))
    except ValueError:
        where.refuse(f"{name} is a number of seconds, not {given[name]!r}")


def _check(section: _Section) -> None:
    """What only the whole section shows."""
    where, given = section.where, section.attributes
    if not given.get("scenario"):
        where.refuse("a drill names its scenario")
    broken = not given["scenario"].startswith(HEALTHY)
    if broken and given.get("heals") not in HEALS:
        where.refuse(f"a drill says how the fault ends: heals={' or heals='.join(HEALS)}")
    if broken and not section.symptoms:
        where.refuse("a drill with a fault needs symptoms")
    ids: dict[str, Step] = {}
    for step in section.steps:
        if step.id in ids:
            step.where.refuse(f"the id {step.id} is taken by {ids[step.id].where}")
        ids[step.id] = step
        if broken and step.phase == "diagnosis" and not (step.skip or step.same or step.fault.says_something):
            step.where.refuse("a diagnosis needs evidence of the fault: rc, match, no-match or json")
    for step in section.steps:
        if step.instead_of and step.instead_of not in ids:
            step.where.refuse(f"there is no step {step.instead_of}")


def _procedure(section: _Section) -> Procedure:
    given = section.attributes
    return Procedure(
        section.where,
        section.title,
        section.anchor,
        given["scenario"],
        frozenset(filter(None, given.get("alerts", "").split(","))),
        given.get("heals", ""),
        "soak" in given,
        tuple(section.steps),
        tuple(section.symptoms),
    )
