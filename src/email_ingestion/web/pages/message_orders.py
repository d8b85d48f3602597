"""The orders about one message: send it again to a sink, and erase it. Operators give them; each is audited."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from email_ingestion.errors import EmailIngestionError
from email_ingestion.ops.audit_log import audited_action
from email_ingestion.ops.logs import logger
from email_ingestion.web.api_errors import WebError
from email_ingestion.web.context import WebContext, context_of
from email_ingestion.web.rendering import render
from email_ingestion.web.sessions import CurrentOperator, WebUser

if TYPE_CHECKING:
    from email_ingestion.erasure.eraser import ErasureSummary
    from email_ingestion.resend import ResendSummary
    from email_ingestion.settings import Settings
    from email_ingestion.stream import RedisLink

PATH = "/mail/{email_id}"
SECONDS = 10.0
SEE_OTHER, BAD_REQUEST, NOT_FOUND, UNAVAILABLE = 303, 400, 404, 503
MAX_RUNS = 100  # whose outcome is remembered
PLACES = {
    "messages": "messages in the database",
    "attachments": "attachments",
    "contents": "contents in the database",
    "blobs": "contents in the blob store",
    "stream": "entries of the stream",
    "dead_letters": "dead letters",
    "sink_stream": "entries of the sink stream",
    "quarantine": "messages in quarantine",
    "deliveries": "deliveries",
    "places": "further places of it",
    "purged": "notes that it was given up",
}

router = APIRouter(include_in_schema=False)


@router.post(PATH + "/resend")
async def resend(
    request: Request, user: CurrentOperator, email_id: str, sink: Annotated[str, Form(max_length=200)]
) -> Response:
    """Owe a message to one sink again, whatever the routes say; the workers deliver it."""
    web = context_of(request)
    if sink not in web.settings.sinks[1:]:
        return _refused(request, user, f"There is no sink {sink!r} beside the database.", BAD_REQUEST)
    try:
        found = await web.access.within(SECONDS, lambda: _resend(web, user, email_id, sink), "the database")
    except (WebError, EmailIngestionError) as error:
        reason = error.message if isinstance(error, WebError) else str(error)
        return _refused(request, user, f"It is not known whether it is sent again: {reason}.", UNAVAILABLE)
    if not (found.owed or found.waiting or found.dead_letters):
        return _refused(request, user, "There is no such message.", NOT_FOUND)
    outcome = "owed" if found.owed else "waiting" if found.waiting else "dead"
    query = urlencode({"resent": sink, "outcome": outcome})
    return RedirectResponse(f"/mail/{quote(email_id)}?{query}", SEE_OTHER)


def _resend(web: WebContext, user: WebUser, email_id: str, sink: str) -> ResendSummary:
    from email_ingestion.ledger.resends import ResendChoice  # noqa: PLC0415 - with it comes SQLAlchemy
    from email_ingestion.resend import Resender  # noqa: PLC0415
    from email_ingestion.routing import Router  # noqa: PLC0415

    settings, ledger = web.settings, web.access.ledger
    router_of_mail = Router(settings.routes, settings.sinks[1:])
    made = Resender(ledger, web.access.blobs, router_of_mail, sink, ledger.resends.now())
    with _audited(web, user, "resend", {"sink": sink, "asked": {"id": [email_id]}, "emails": [email_id]}) as outcome:
        for _ in made.run(ResendChoice(email_ids=(email_id,))):
            pass
        outcome |= {"owed": made.summary.owed, "failed": len(made.summary.failed)}
    return made.summary


@dataclass
class ErasureRun:
    """An erasure that was ordered on a page; it grows while it runs."""

    email_id: str
    is_over: bool = False
    error: str = ""
    matched: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    open_points: tuple[str, ...] = ()
    report: str = ""


class ErasureRuns:
    """The erasures that this process was asked for, by identity."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._runs: dict[str, ErasureRun] = {}

    @cached_property
    def link(self) -> RedisLink:
        """The connection to Redis."""
        from email_ingestion.stream import open_link  # noqa: PLC0415 - with it comes the client of Redis

        return open_link(self._settings.redis_address, "email-ingestion-web-erase")

    def find(self, email_id: str) -> ErasureRun | None:
        """Return the last run for a message."""
        with self._lock:
            return self._runs.get(email_id)

    def start(self, web: WebContext, user: WebUser, email_id: str) -> ErasureRun:
        """Erase a message in a thread, unless that is going on."""
        with self._lock:
            running = self._runs.get(email_id)
            if running and not running.is_over:
                return running
            while len(self._runs) >= MAX_RUNS:
                del self._runs[next(iter(self._runs))]
            run = self._runs[email_id] = ErasureRun(email_id)
        threading.Thread(target=_erase, args=(web, user, run, self.link), name="erasure", daemon=True).start()
        return run


def _runs_of(request: Request) -> ErasureRuns:
    runs: ErasureRuns = request.app.state.erasures
    return runs


@router.get(PATH + "/erase")
async def erase_page(request: Request, user: CurrentOperator, email_id: str) -> Response:
    """Show what an erasure would remove, or what the one that was ordered did."""
    web = context_of(request)
    runs = _runs_of(request)
    run = runs.find(email_id)
    if run and not (run.is_over and run.error):
        return _erase_page(request, user, email_id, run=run, refresh=0 if run.is_over else 1)
    try:
        found = await web.access.within(SECONDS, lambda: _preview(web, runs.link, email_id), "Redis or the database")
    except (WebError, EmailIngestionError) as error:
        reason = error.message if isinstance(error, WebError) else str(error)
        return _erase_page(request, user, email_id, problem=reason, status=UNAVAILABLE)
    problem = run.error if run else ""
    return _erase_page(request, user, email_id, removed=dict(+found.removed), held=bool(found.held), problem=problem)


@router.post(PATH + "/erase")
async def erase(request: Request, user: CurrentOperator, email_id: str) -> Response:
    """Begin to erase a message for good."""
    _runs_of(request).start(context_of(request), user, email_id)
    return RedirectResponse(f"/mail/{quote(email_id)}/erase", SEE_OTHER)


def _erase_page(
    request: Request,
    user: WebUser,
    email_id: str,
    *,
    run: ErasureRun | None = None,
    removed: dict[str, int] | None = None,
    problem: str = "",
    held: bool = False,
    refresh: int = 0,
    status: int = 200,
) -> Response:
    counts = run.removed if run else removed or {}
    places = [(PLACES.get(name, name), count) for name, count in counts.items()]
    return render(
        request,
        "mail_erase.html",
        user,
        refresh=refresh,
        status=status,
        email_id=email_id,
        run=run,
        places=places,
        problem=problem,
        held=held,
    )


def _preview(web: WebContext, link: RedisLink, email_id: str) -> ErasureSummary:
    from email_ingestion.app.erasures import new_run, open_eraser  # noqa: PLC0415 - with it come the sinks
    from email_ingestion.erasure.mail_selector import MailSelector  # noqa: PLC0415

    with open_eraser(web.settings, link, web.access.ledger, new_run()) as eraser:
        for _ in eraser.preview(MailSelector(email_ids=(email_id,))):
            pass
        return eraser.summary


def _erase(web: WebContext, user: WebUser, run: ErasureRun, link: RedisLink) -> None:
    """Erase, with a database connection of its own that waits as long as the command does."""
    from email_ingestion.app.erasures import new_run, open_eraser, report_erasure  # noqa: PLC0415
    from email_ingestion.erasure.mail_selector import MailSelector  # noqa: PLC0415
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415

    selector = MailSelector(email_ids=(run.email_id,))
    settings = web.settings
    try:
        with (
            closing(open_ledger(settings.database_url)) as ledger,
            open_eraser(settings, link, ledger, new_run()) as eraser,
            _audited(web, user, "erase", {"run": eraser.name, **selector.describe(), "scrub": False}) as outcome,
        ):
            for _ in eraser.erase(selector):
                pass
            found = eraser.summary
            run.matched, run.removed = found.matched, dict(+found.removed)
            run.open_points = tuple(found.open_points())
            outcome |= {"matched": run.matched, "removed": run.removed}
            outcome.update(report_erasure(settings, eraser, selector, scrubbed=False))
            run.report = str(outcome["report"])
    except EmailIngestionError as error:
        run.error = str(error)
    except Exception as error:  # noqa: BLE001 - a thread's end: whoever looks at the page must see that it failed
        run.error = "an error that nobody foresaw; logs/web.log has it"
        logger("web").exception("web_request_failed", exc_info=error)
    finally:
        run.is_over = True


def _audited(
    web: WebContext, user: WebUser, action: str, details: Mapping[str, Any]
) -> AbstractContextManager[dict[str, Any]]:
    record = {"user": user.name, "from": user.address, "via": "web", "pid": os.getpid(), "action": action, **details}
    return audited_action(web.settings.log_dir, record)


def _refused(request: Request, user: WebUser, text: str, status: int) -> Response:
    return render(request, "message.html", user, title="Not done", text=text, status=status)
