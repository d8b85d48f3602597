"""The control API: what a test or a drill does to the sandbox while a client uses it. JSON over HTTP."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from gmail_sandbox.account import UnknownMessage
from gmail_sandbox.faults import CATALOGUE, ArmedFault, BadFault, Option
from gmail_sandbox.http_server import BadRequest, Request, Response, answer, error

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmail_sandbox.backend import Backend
    from gmail_sandbox.message import Message
    from gmail_sandbox.session import SessionRegistry

_PAGE = 1000


class ControlApi:
    """Routes requests to the account and the faults."""

    def __init__(self, backend: Backend, sessions: SessionRegistry) -> None:
        """Control a backend."""
        self._backend = backend
        self._account, self._faults = backend.account, backend.faults
        self._routes: dict[tuple[str, str], Callable[[Request], Response]] = {
            ("GET", "/health"): lambda _request: answer({"status": "alive"}),
            ("POST", "/deliver"): self._deliver,
            ("GET", "/messages"): self._list,
            ("GET", "/faults"): lambda _request: answer(self._fault_table()),
            ("POST", "/faults"): self._arm,
            ("DELETE", "/faults"): lambda _request: self._clear(None),
            ("GET", "/sessions"): lambda _request: answer([s.describe() for s in sessions]),
            ("GET", "/stats"): lambda _request: answer(backend.stats.as_json()),
            ("GET", "/account"): lambda _request: answer(self._account_facts()),
            ("POST", "/account"): self._configure,
        }

    async def handle(self, request: Request) -> Response:
        """Answer a request; whatever is wrong with it becomes one sentence."""
        try:
            route = self._routes.get((request.method, request.path.rstrip("/") or "/"))
            return route(request) if route else self._by_path(request)
        except (BadFault, ValueError) as bad:
            return error(400, str(bad))
        except UnknownMessage as unknown:
            return error(404, str(unknown))

    def _by_path(self, request: Request) -> Response:
        match (request.method, request.path.strip("/").split("/")):
            case ("GET", ["messages", msgid]):
                raw = self._account.raw(self._account.message(_number(msgid)))
                return Response(body=raw, content_type="message/rfc822")
            case ("POST", ["messages", msgid, "labels"]):
                return self._relabel(_number(msgid), request.json())
            case ("DELETE", ["messages", msgid]):
                self._account.delete(_number(msgid))
                return answer({"deleted": _number(msgid)})
            case ("DELETE", ["faults", name]):
                return self._clear(name)
            case _:
                return error(404, f"there is no {request.method} {request.path}")

    def _deliver(self, request: Request) -> Response:
        if request.headers.get("content-type", "").lower().startswith("message/rfc822"):
            fields: dict[str, object] = {name: values for name, values in request.query.items() if name == "flags"}
            fields["labels"] = request.query.get("label", ["\\Inbox"])
            if "internaldate" in request.query:
                fields["internaldate"] = request.parameter("internaldate")
            raw = request.body
        else:
            fields = request.json()
            raw = _raw_of(fields)
        outcome = self._account.deliver(
            raw,
            _strings(fields, "labels", ["\\Inbox"]),
            _strings(fields, "flags", []),
            _milliseconds(fields.get("internaldate")),
        )
        self._backend.stats.deliveries += 1
        facts = self._facts(outcome.message)
        return answer(facts | {"merged": outcome.merged}, 200 if outcome.merged else 201)

    def _facts(self, message: Message) -> dict[str, object]:
        names = self._account.names()
        return {
            "msgid": message.msgid,
            "thrid": message.thrid,
            "uid": self._account.uid_in_all_mail(message),
            "mailbox": names["\\All"],
            "location": message.location.value,
            "labels": sorted(message.labels),
            "flags": sorted(message.flags),
            "size": message.size,
            "internaldate": datetime.fromtimestamp(message.internaldate / 1000, UTC).isoformat(),
            "message_id": message.message_id,
        }

    def _list(self, request: Request) -> Response:
        offset, limit = _number(request.parameter("offset", "0")), _number(request.parameter("limit", str(_PAGE)))
        msgids = sorted(self._account.messages)
        page = [self._account.messages[msgid] for msgid in msgids[offset : offset + limit]]
        listed = [self._facts(m) | {"sha256": hashlib.sha256(self._account.raw(m)).hexdigest()} for m in page]
        return answer({"total": len(msgids), "offset": offset, "limit": limit, "messages": listed})

    def _relabel(self, msgid: int, fields: dict[str, object]) -> Response:
        self._account.change_labels(msgid, _strings(fields, "add", []), _strings(fields, "remove", []))
        return answer(self._facts(self._account.message(msgid)))

    def _arm(self, request: Request) -> Response:
        fields = request.json()
        options = fields.get("options") or {}
        count = fields.get("count", "default")
        if not isinstance(options, dict):
            raise BadRequest("options must be an object")
        if count is not None and count != "default" and (not isinstance(count, int) or count < 1):
            raise BadRequest("count must be a positive number or null")
        fault = self._faults.arm(str(fields.get("name", "")), count, _options(options))
        return answer(_fault_facts(fault), 201)

    def _clear(self, name: str | None) -> Response:
        if name is not None and name not in CATALOGUE:
            return error(404, f"no fault is named {name!r}")
        self._faults.clear(name)
        return answer({"cleared": name or "all"})

    def _fault_table(self) -> dict[str, object]:
        catalogue = [
            {"name": name, "text": kind.description, "count": kind.count, "options": dict(kind.options)}
            for name, kind in CATALOGUE.items()
        ]
        return {"armed": [_fault_facts(fault) for fault in self._faults.armed()], "catalogue": catalogue}

    def _account_facts(self) -> dict[str, object]:
        return {
            "user": self._account.user,
            **asdict(self._account.presentation),
            "mailboxes": {
                name: {
                    "key": key,
                    "messages": len(self._account.mailboxes[key]),
                    "uidvalidity": self._account.mailboxes[key].uidvalidity,
                    "uidnext": self._account.mailboxes[key].uidnext,
                }
                for key, name in self._account.names().items()
            },
        }

    def _configure(self, request: Request) -> Response:
        known = asdict(self._account.presentation)
        changes = request.json()
        for name, value in changes.items():
            if name not in known or type(value) is not type(known[name]):
                expected = ", ".join(f"{key} ({type(known[key]).__name__})" for key in known)
                raise BadRequest(f"{name!r} cannot be set to {value!r}; known: {expected}")
        self._account.configure(**cast("dict[str, str | bool | int]", changes))
        return answer(self._account_facts())


def _fault_facts(fault: ArmedFault) -> dict[str, object]:
    return {"name": fault.name, "count": fault.remaining, "options": fault.options}


def _number(text: str) -> int:
    if not text.isdigit():
        raise BadRequest(f"{text!r} is not a number")
    return int(text)


def _strings(fields: dict[str, object], name: str, default: list[str]) -> list[str]:
    value = fields.get(name, default)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest(f"{name} must be a list of strings")
    return value


def _options(values: dict[str, object]) -> dict[str, Option]:
    for name, value in values.items():
        if value is not None and not isinstance(value, (str, int, float)):
            raise BadRequest(f"option {name} must be a string, a number, true, false or null")
    return cast("dict[str, Option]", values)


def _raw_of(fields: dict[str, object]) -> bytes:
    text, encoded = fields.get("raw"), fields.get("raw_base64")
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    if not isinstance(encoded, str):
        raise BadRequest("give the message as raw (text) or raw_base64")
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as bad:
        raise BadRequest(f"raw_base64 is not base64: {bad}") from bad


def _milliseconds(value: object) -> int | None:
    if value is None:
        return None
    try:
        when = datetime.fromisoformat(str(value))
    except ValueError as bad:
        raise BadRequest(f"internaldate must be an ISO date and time, not {value!r}") from bad
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
