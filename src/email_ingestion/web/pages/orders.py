"""The orders of the pages: each is begun here, or refused with a line in the audit log, and has a page of its own."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from email_ingestion.errors import EmailIngestionError
from email_ingestion.web.jobs import ORDERS, Job, Jobs
from email_ingestion.web.rendering import render
from email_ingestion.web.sessions import CurrentUser, WebEntry, WebUser

REFRESH_SECONDS = 2
SEE_OTHER, NOT_FOUND, CONFLICT = 303, 404, 409

router = APIRouter(include_in_schema=False)


@router.get(ORDERS + "/{job_id}")
def job_page(request: Request, user: CurrentUser, job_id: str) -> Response:
    """Show how far an order is."""
    jobs: Jobs = request.app.state.jobs
    job = jobs.find(job_id)
    if job is None:
        text = "There is no such order in this process: the audit log says what was done."
        return render(request, "message.html", user, title="Not found", text=text, status=NOT_FOUND)
    refresh = REFRESH_SECONDS if job.state == "running" else 0
    return render(request, "job.html", user, refresh=refresh, job=job)


def begin_order(
    request: Request, user: WebUser, title: str, back: str, work: Callable[[Job], str], *, action: str
) -> Response:
    """Begin an order that was given on the page `back`, and lead to its progress.

    A refusal stands in the audit log as `action`.
    """
    jobs: Jobs = request.app.state.jobs
    try:
        job = jobs.start(title, user.name, back, work)
    except EmailIngestionError as error:
        return refuse_order(request, user, str(error), action=action)
    return RedirectResponse(f"{ORDERS}/{job.id}", SEE_OTHER)


def refuse_order(request: Request, user: WebUser, reason: str, *, action: str) -> Response:
    """Say why an order is not carried out, in the audit log too."""
    entry: WebEntry = request.app.state.entry
    entry.record(user.name, user.address, action, "refused", reason=reason)
    return not_done(request, user, reason, CONFLICT)


def not_done(request: Request, user: WebUser, text: str, status: int) -> Response:
    """Return the page that says why an order was not carried out."""
    return render(request, "message.html", user, title="Not done", text=text, status=status)
