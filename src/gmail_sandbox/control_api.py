"""The control API, JSON over HTTP: a test delivers mail and arms faults while a client uses the sandbox."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gmail_sandbox.account import UnknownMessage
from gmail_sandbox.faults import CATALOGUE, ArmedFault, Option
from gmail_sandbox.http_server import (
    BadRequest,
    ErrorHandler,
    JsonAnswer,
    create_app,
    error_answer,
    read_body,
    read_json,
)

if TYPE_CHECKING:
    from starlette.applications import Starlette

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
        self._sessions = sessions

    def create_app(self) -> Starlette:
        """Return the application that serves the control API; an error is one sentence."""
        routes = [
            Route("/health", self._health),
            Route("/deliver", self._deliver, methods=["POST"]),
            Route("/messages", self._list),
            Route("/messages/{msgid}", self._raw, methods=["GET"]),
            Route("/messages/{msgid}", self._delete, methods=["DELETE"]),
            Route("/messages/{msgid}/labels", self._relabel, methods=["POST"]),
            Route("/faults", self._list_faults, methods=["GET"]),
            Route("/faults", self._arm, methods=["POST"]),
            Route("/faults", self._clear, methods=["DELETE"]),
            Route("/faults/{name}", self._clear, methods=["DELETE"]),
            Route("/sessions", self._list_sessions),
            Route("/stats", self._show_stats),
            Route("/account", self._show_account, methods=["GET"]),
            Route("/account", self._configure, methods=["POST"]),
        ]
        errors: dict[int | type[Exception], ErrorHandler] = {
            ValueError: _answer_bad_value,
            UnknownMessage: _answer_unknown,
            404: _answer_no_route,
            405: _answer_no_route,
        }
        return create_app(routes, errors)

    async def _health(self, _request: Request) -> Response:
        return JsonAnswer({"status": "alive"})

    async def _raw(self, request: Request) -> Response:
        raw = self._account.raw(self._account.message(_msgid(request)))
        return Response(raw, media_type="message/rfc822")

    async def _delete(self, request: Request) -> Response:
        self._account.delete(_msgid(request))
        return JsonAnswer({"deleted": _msgid(request)})

    async def _list_faults(self, _request: Request) -> Response:
        return JsonAnswer(self._fault_table())

    async def _list_sessions(self, _request: Request) -> Response:
        return JsonAnswer([session.describe() for session in self._sessions])

    async def _show_stats(self, _request: Request) -> Response:
        return JsonAnswer(self._backend.stats.as_json())

    async def _show_account(self, _request: Request) -> Response:
        return JsonAnswer(self._account_facts())

    async def _deliver(self, request: Request) -> Response:
        if request.headers.get("content-type", "").lower().startswith("message/rfc822"):
            query = request.query_params
            fields: dict[str, object] = {
                "labels": query.getlist("label") or ["\\Inbox"],
                "flags": query.getlist("flags"),
                "internaldate": query.get("internaldate"),
            }
            raw = await read_body(request)
        else:
            fields = await read_json(request)
            raw = _raw_of(fields)
        outcome = self._account.deliver(
            raw,
            _strings(fields, "labels", ["\\Inbox"]),
            _strings(fields, "flags", []),
            _milliseconds(fields.get("internaldate")),
        )
        self._backend.stats.deliveries += 1
        facts = self._facts(outcome.message)
        return JsonAnswer(facts | {"merged": outcome.merged}, 200 if outcome.merged else 201)

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

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        offset, limit = _number(query.get("offset", "0")), _number(query.get("limit", str(_PAGE)))
        msgids = sorted(self._account.messages)
        page = [self._account.messages[msgid] for msgid in msgids[offset : offset + limit]]
        listed = [self._facts(m) | {"sha256": hashlib.sha256(self._account.raw(m)).hexdigest()} for m in page]
        return JsonAnswer({"total": len(msgids), "offset": offset, "limit": limit, "messages": listed})

    async def _relabel(self, request: Request) -> Response:
        msgid, fields = _msgid(request), await read_json(request)
        self._account.change_labels(msgid, _strings(fields, "add", []), _strings(fields, "remove", []))
        return JsonAnswer(self._facts(self._account.message(msgid)))

    async def _arm(self, request: Request) -> Response:
        fields = await read_json(request)
        options = fields.get("options") or {}
        count = fields.get("count", "default")
        if not isinstance(options, dict):
            raise BadRequest("options must be an object")
        if count is not None and count != "default" and (not isinstance(count, int) or count < 1):
            raise BadRequest("count must be a positive number or null")
        fault = self._faults.arm(str(fields.get("name", "")), count, _options(options))
        return JsonAnswer(_fault_facts(fault), 201)

    async def _clear(self, request: Request) -> Response:
        name = request.path_params.get("name")
        if name is not None and name not in CATALOGUE:
            return error_answer(404, f"no fault is named {name!r}")
        self._faults.clear(name)
        return JsonAnswer({"cleared": name or "all"})

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

    async def _configure(self, request: Request) -> Response:
        current = asdict(self._account.presentation)
        changes = await read_json(request)
        for name, value in changes.items():
            if name not in current or type(value) is not type(current[name]):
                expected = ", ".join(f"{key} ({type(current[key]).__name__})" for key in current)
                raise BadRequest(f"{name!r} cannot be set to {value!r}; known: {expected}")
        self._account.configure(**cast("dict[str, str | bool | int]", changes))
        return JsonAnswer(self._account_facts())


def _fault_facts(fault: ArmedFault) -> dict[str, object]:
    return {"name": fault.name, "count": fault.remaining, "options": fault.options}


async def _answer_bad_value(_request: Request, error: ValueError) -> Response:
    return error_answer(400, str(error))


async def _answer_unknown(_request: Request, error: UnknownMessage) -> Response:
    return error_answer(404, str(error))


async def _answer_no_route(request: Request, _error: Exception) -> Response:
    return error_answer(404, f"there is no {request.method} {request.url.path}")


def _msgid(request: Request) -> int:
    return _number(request.path_params["msgid"])


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
