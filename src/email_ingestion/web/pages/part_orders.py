"""Orders about one part of the work, and their end, as `set`, `feature`, `sink` and `route block` give them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from email_ingestion.errors import OperationFailed
from email_ingestion.overrides import BATCH_SIZE, BLOCK, FEATURE, MAX_BATCH, SINK, Feature
from email_ingestion.web.pages.operate import PATH, SPANS, Everywhere, Span, tell
from email_ingestion.web.pages.orders import refuse_order
from email_ingestion.web.process_orders import part_order
from email_ingestion.web.sessions import CurrentOperator, WebEntry, WebUser

Undo = Annotated[str, Form()]

router = APIRouter(include_in_schema=False)


@router.post(PATH + "/batch-size")
def batch_size(
    request: Request,
    user: CurrentOperator,
    size: Annotated[int, Form(ge=1, le=MAX_BATCH)],
    ttl: Span = "1h",
    *,
    everywhere: Everywhere = "",
    undo: Undo = "",
) -> Response:
    """Let workers take so many messages at once for a while, or as many as the settings say again."""
    title = "Batch size of the settings" if undo else f"Batch size {size} for {ttl}"
    return _order(request, user, title, (BATCH_SIZE, "" if undo else str(size)), ttl, everywhere=everywhere)


@router.post(PATH + "/feature")
def feature(
    request: Request,
    user: CurrentOperator,
    name: Annotated[Feature, Form()],
    ttl: Span = "1h",
    *,
    everywhere: Everywhere = "",
    undo: Undo = "",
) -> Response:
    """Switch a part of the producer's work off for a while, or on again."""
    title = f"Switch {name} on" if undo else f"Switch {name} off for {ttl}"
    return _order(request, user, title, (f"{FEATURE}{name}", "" if undo else "off"), ttl, everywhere=everywhere)


@router.post(PATH + "/sink")
def sink(
    request: Request,
    user: CurrentOperator,
    name: Annotated[str, Form(max_length=200)],
    ttl: Span = "15m",
    *,
    everywhere: Everywhere = "",
    undo: Undo = "",
) -> Response:
    """Give a sink nothing for a while, or its messages again."""
    entry: WebEntry = request.app.state.entry
    if name not in entry.settings.sinks[1:]:
        reason = f"there is no sink {name!r} beside the database"
        return refuse_order(request, user, reason, action=f"web {request.url.path}")
    title = f"Resume sink {name}" if undo else f"Pause sink {name} for {ttl}"
    return _order(request, user, title, (f"{SINK}{name}", "" if undo else "paused"), ttl, everywhere=everywhere)


@router.post(PATH + "/block")
def block(
    request: Request,
    user: CurrentOperator,
    sender: Annotated[str, Form(min_length=1, max_length=200)],
    ttl: Span = "1h",
    *,
    everywhere: Everywhere = "",
    undo: Undo = "",
) -> Response:
    """Put the mail of a sender aside for a while, or deliver it again."""
    pattern = sender.strip().lower()
    title = f"Deliver mail of {pattern} again" if undo else f"Put mail of {pattern} aside for {ttl}"
    return _order(request, user, title, (f"{BLOCK}{pattern}", "" if undo else "blocked"), ttl, everywhere=everywhere)


def _order(
    request: Request, user: WebUser, title: str, part: tuple[str, str], ttl: Span, *, everywhere: str
) -> Response:
    """Begin an order; `part` is its name, and its value or nothing to take it back."""
    try:
        order = part_order(*part, SPANS[ttl], user.name)
    except OperationFailed as error:
        return refuse_order(request, user, str(error), action=f"web {request.url.path}")
    return tell(request, user, title, order, everywhere)
