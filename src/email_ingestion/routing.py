"""Routing: to which sinks a message goes, with which tags and priority, by the `[[routes]]` of config/settings.toml.

A route applies when all its conditions hold. Routes apply in the order of the file: tags add up, the last sinks and the
last priority win, and `skip` ends the evaluation. Every message goes into the database, which must know what was seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import translate
from functools import cached_property, partial
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from email_ingestion.errors import ConfigurationError
from email_ingestion.records import Email

DATABASE: Final = "database"
MAX_RETENTION_DAYS: Final = 36_500


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


# One or several patterns, of which one must match; * and ? as in file names, case-insensitive.
Patterns = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class Route(BaseModel):
    """One `[[routes]]` table: conditions, all of which must hold, and their consequences."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = ""

    account: Patterns | None = None  # configured name
    label: Patterns | None = None  # Gmail label
    sender: Patterns | None = None  # address
    domain: Patterns | None = None  # what stands behind the @ of the sender
    subject: Patterns | None = None
    list: Patterns | bool | None = None  # List-Id, or whether there is any mailing list
    has_attachment: bool | None = None  # other than those shown within the text
    auto_reply: bool | None = None
    bounce: bool | None = None
    size_above: int | None = None  # bytes
    size_below: int | None = None
    spf: Patterns | None = None
    dkim: Patterns | None = None
    dmarc: Patterns | None = None
    priority_above: int | None = None  # what the message says itself, or a route before this one
    priority_below: int | None = None

    sinks: tuple[str, ...] | None = None
    tags: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    priority: Annotated[int, Field(ge=0, le=10)] | None = None
    retention_days: Annotated[int, Field(ge=0, le=MAX_RETENTION_DAYS)] | None = None  # 0: never erased by its age
    skip: bool = False

    def matches(self, email: Email) -> bool:
        """Return whether all conditions hold."""
        return all(holds(email) for holds in self._conditions)

    @property
    def needs_body(self) -> bool:
        """Whether a condition needs more than the header."""
        return self.has_attachment is not None or self.bounce is not None

    @cached_property
    def _conditions(self) -> tuple[Callable[[Email], bool], ...]:
        made = (_condition(name, value) for name, value in self if name in _FIELDS and value is not None)
        return (*made, *self._limits())

    def _limits(self) -> Iterator[Callable[[Email], bool]]:
        for name, of in _NUMBERS.items():
            above, below = getattr(self, f"{name}_above"), getattr(self, f"{name}_below")
            if above is not None:
                yield partial(_is_above, of, above)
            if below is not None:
                yield partial(_is_below, of, below)


def _is_above(of: Callable[[Email], int], bound: int, email: Email) -> bool:
    return of(email) > bound


def _is_below(of: Callable[[Email], int], bound: int, email: Email) -> bool:
    return of(email) < bound


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of routing a message; `routes` are the names or numbers of the routes that applied."""

    email: Email  # with its tags and priority
    sinks: tuple[str, ...]  # without the database
    routes: tuple[str, ...] = ()
    skipped: bool = False
    retention_days: int | None = None  # after which it may be erased; 0 never, None: its account decides


class Router:
    """Applies the routes to messages. `sinks` are the configured sinks without the database."""

    def __init__(self, tables: Sequence[Mapping[str, Any]], sinks: Sequence[str]) -> None:
        """Raises ConfigurationError with one sentence for a table that is no valid route."""
        self._sinks = tuple(sinks)
        self._routes = [self._parse(number, table) for number, table in enumerate(tables, 1)]
        self._by_header = [(name, route) for name, route in self._routes if not route.needs_body]

    def decide(self, email: Email) -> Decision:
        """Apply the matching routes."""
        return self._apply(email, self._routes)

    @property
    def sets_retention(self) -> bool:
        """Whether any route says for how long mail is kept."""
        return any(route.retention_days is not None for _, route in self._routes)

    @property
    def sets_priority(self) -> bool:
        """Whether any route sets a priority."""
        return any(route.priority is not None for _, route in self._routes)

    @property
    def chooses_sinks(self) -> bool:
        """Whether any route sends a message to some of the sinks only."""
        return any(route.skip or route.sinks is not None for _, route in self._routes)

    def priority_of(self, email: Email) -> int:
        """Return the priority by the header alone: routes that need the body are skipped."""
        return self._apply(email, self._by_header).email.priority

    def _apply(self, email: Email, routes: Sequence[tuple[str, Route]]) -> Decision:
        decision = Decision(email, self._sinks)
        for name, route in routes:
            if route.matches(decision.email):
                decision = _apply_route(decision, name, route)
                if route.skip:
                    break
        return decision

    def _parse(self, number: int, table: Mapping[str, Any]) -> tuple[str, Route]:
        name = str(table.get("name") or number)
        try:
            route = Route.model_validate({key: _list_as_tuple(value) for key, value in table.items()})
        except ValidationError as error:
            raise ConfigurationError(f"route {name} in [[routes]]: {_explain(error)}") from error
        for sink in route.sinks or ():
            if sink not in (DATABASE, *self._sinks):
                raise ConfigurationError(f"route {name} in [[routes]] names the sink {sink!r}: add it to SINKS")
        return name, route


def _apply_route(decision: Decision, name: str, route: Route) -> Decision:
    email = decision.email
    tags = tuple(dict.fromkeys((*email.tags, *route.tags)))
    sinks = decision.sinks if route.sinks is None else tuple(sink for sink in route.sinks if sink != DATABASE)
    return Decision(
        email=replace(email, tags=tags, priority=email.priority if route.priority is None else route.priority),
        sinks=() if route.skip else sinks,
        routes=(*decision.routes, name),
        skipped=route.skip,
        retention_days=decision.retention_days if route.retention_days is None else route.retention_days,
    )


def _condition(name: str, expected: tuple[str, ...] | bool) -> Callable[[Email], bool]:
    of = _FIELDS[name]
    if isinstance(expected, bool):
        return lambda email: bool(of(email)) is expected
    pattern = re.compile("|".join(map(translate, expected)), re.IGNORECASE)
    return lambda email: any(pattern.match(value) for value in of(email))


def _verdict(name: str) -> Callable[[Email], Sequence[str]]:
    return lambda email: [found] if email.verdicts and (found := getattr(email.verdicts, name)) else []


def _list(email: Email) -> Sequence[str]:
    return [email.mailing_list.list_id or ""] if email.mailing_list else []


def _sender(email: Email) -> str:
    return email.from_.addr if email.from_ else ""


# The values of a message that a condition is matched against; a true or false condition asks whether there are any.
_FIELDS: Final[Mapping[str, Callable[[Email], Sequence[Any]]]] = {
    "account": lambda email: [email.envelope.account],
    "label": lambda email: email.envelope.labels,
    "sender": lambda email: [_sender(email)],
    "domain": lambda email: [_sender(email).rpartition("@")[2]],
    "subject": lambda email: [email.subject],
    "list": _list,
    "has_attachment": lambda email: [one for one in email.attachments if not one.inline],
    "auto_reply": lambda email: [True] if email.auto_reply else [],
    "bounce": lambda email: [True] if email.bounce else [],
    "spf": _verdict("spf"),
    "dkim": _verdict("dkim"),
    "dmarc": _verdict("dmarc"),
}

_NUMBERS: Final[Mapping[str, Callable[[Email], int]]] = {
    "size": lambda email: email.envelope.size,
    "priority": lambda email: email.priority,
}


def _list_as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] != "extra_forbidden":
        text = first["msg"].removeprefix("Value error, ")
        return f"{name}: {text[0].lower()}{text[1:]}"
    near = get_close_matches(name, Route.model_fields, n=1, cutoff=0)
    return f"{name} is not known; did you mean {near[0]}?"
