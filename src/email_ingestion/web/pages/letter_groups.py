"""Dead letters by what they died of; a preview of a replay or a purge, and then the order itself, with progress."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from email_ingestion.ops.redaction import redact
from email_ingestion.stream.dead_letters import DeadLetter, DeadLetterFilter
from email_ingestion.web.flow_judgement import DEAD_LETTERS
from email_ingestion.web.jobs import Job
from email_ingestion.web.letter_orders import LetterOrder, LetterOrders
from email_ingestion.web.pages.orders import begin_order, refuse_order
from email_ingestion.web.pages.runbooks import section_link
from email_ingestion.web.readings import Source
from email_ingestion.web.rendering import render
from email_ingestion.web.sessions import CurrentOperator, CurrentUser

PATH = "/dead-letters"
WAIT_SECONDS = 0.7
SHOWN = 50  # letters of a group
REFRESH_SECONDS = 30

router = APIRouter(include_in_schema=False)


@router.get(PATH)
def groups(request: Request, user: CurrentUser) -> Response:
    """Show the groups."""
    pages: LetterOrders = request.app.state.letter_orders
    reading = pages.overview.get(WAIT_SECONDS)
    found = reading.value
    rows = [(each, redact(each.error)) for each in found.groups] if found else []
    help_link = section_link(DEAD_LETTERS)
    return render(
        request, "dead_letters.html", user, refresh=REFRESH_SECONDS, reading=reading, rows=rows, help_link=help_link
    )


@router.get(PATH + "/group/{fingerprint:path}")
def group(request: Request, user: CurrentUser, fingerprint: str) -> Response:
    """Show one group: its error, its sample, its letters, and what may be done with them."""
    pages: LetterOrders = request.app.state.letter_orders
    reading = pages.overview.get(WAIT_SECONDS)
    known = reading.value.groups if reading.value else []
    found = next((each for each in known if each.fingerprint == fingerprint), None)
    letters, letters_problem = _first_letters(pages, fingerprint) if found else ([], "")
    accounts = reading.value.accounts.get(fingerprint, {}) if reading.value else {}
    return render(
        request,
        "dead_letter_group.html",
        user,
        fingerprint=fingerprint,
        reading=reading,
        group=found,
        error=redact(found.error) if found else "",
        letters=letters,
        letters_problem=letters_problem,
        accounts=accounts,
        help_link=section_link(DEAD_LETTERS),
        shown=SHOWN,
    )


def _first_letters(pages: LetterOrders, fingerprint: str) -> tuple[list[DeadLetter], str]:
    """Return the first letters of a group, or why they cannot be read within the time of a page."""
    wanted = DeadLetterFilter(fingerprint=fingerprint)

    def look() -> list[DeadLetter]:
        return list(islice(filter(wanted.matches, pages.queue.letters()), SHOWN))

    reading = Source("Redis", look, 0.0).get(WAIT_SECONDS)
    return reading.value or [], reading.problem


@router.get(PATH + "/preview")
def preview(
    request: Request,
    user: CurrentUser,
    order: LetterOrder,
    fingerprint: Annotated[str, Query(max_length=200)] = "",
    account: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """Say what an order would do, and ask."""
    pages: LetterOrders = request.app.state.letter_orders
    reading = pages.overview.get(WAIT_SECONDS)
    found = [each for each in reading.value.groups if fingerprint in {"", each.fingerprint}] if reading.value else []
    accounts: Counter[str] = Counter()
    for each in found:
        accounts.update(reading.value.accounts.get(each.fingerprint, {}) if reading.value else {})
    count = accounts[account] if account else accounts.total()
    return render(
        request,
        "dead_letter_preview.html",
        user,
        order=order,
        fingerprint=fingerprint,
        account=account,
        reading=reading,
        groups=found,
        accounts=dict(accounts),
        count=count,
        folder=request.app.state.entry.settings.backup_dir,
    )


@router.post(PATH + "/{order}")
def give_order(
    request: Request,
    user: CurrentOperator,
    order: LetterOrder,
    *,
    fingerprint: Annotated[str, Form(max_length=200)] = "",
    account: Annotated[str, Form(max_length=100)] = "",
    everything: Annotated[str, Form()] = "",
) -> Response:
    """Begin a replay or a purge, and lead to its progress."""
    pages: LetterOrders = request.app.state.letter_orders
    action = f"dlq {order}"
    if not (fingerprint or account or everything):
        reason = "all of them cannot be meant by silence: choose a group, or say that all are meant"
        return refuse_order(request, user, reason, action=action)
    which = f"of group {fingerprint}" if fingerprint else "all dead letters"
    title = f"{order.capitalize()} {which}" + (f" of account {account}" if account else "")

    def work(job: Job) -> str:
        only = DeadLetterFilter(fingerprint=fingerprint or None, account=account or None)
        return pages.carry_out(order, only, user, job)

    return begin_order(request, user, title, PATH, work, action=action)
