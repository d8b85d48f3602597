"""The runbooks in the frame of the pages, so that whoever sees something red need not leave them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from markupsafe import Markup

from email_ingestion.errors import ConfigurationError
from email_ingestion.incidents.runbook_pages import RunbookSection, search_sections
from email_ingestion.ops.runbook_routes import anchor, runbook_body, runbook_language, runbook_names
from email_ingestion.web.rendering import render
from email_ingestion.web.sessions import CurrentUser

PATH = "/runbooks"
INCIDENTS = f"{PATH}/incident_response"
NOT_FOUND = 404

router = APIRouter(include_in_schema=False)


@router.get(PATH)
def contents(request: Request, user: CurrentUser, q: Annotated[str, Query(max_length=200)] = "") -> Response:
    """List the pages, or the sections for an alert, a number or words."""
    try:
        sections = search_sections(q) if q.strip() else []
        problem = ""
    except ConfigurationError as error:
        sections, problem = [], str(error)
    found = [(each.heading, _address(each)) for each in sections]
    return render(request, "runbooks.html", user, names=runbook_names(), query=q, found=found, problem=problem)


@router.get(PATH + "/{name:path}")
def page(request: Request, user: CurrentUser, name: str) -> Response:
    """Show one page."""
    if name not in runbook_names():
        text = f"There is no runbook {name!r}: the page Runbooks lists them."
        return render(request, "message.html", user, title="Not found", text=text, status=NOT_FOUND)
    body = Markup(runbook_body(name))  # noqa: S704 - it escapes all HTML of the Markdown
    return render(request, "runbook.html", user, name=name, body=body, text_language=runbook_language(name))


def _address(section: RunbookSection) -> str:
    page = section.page.removesuffix(".md")
    return f"{PATH}/{page}#{anchor(section.heading)}" if section.number else f"{PATH}/{page}"


def section_link(place: str) -> str:
    """Return the address of a section of the incident runbook.

    `place` is its anchor, which an alert names too (`ops.builtin_alerts`).
    """
    return f"{INCIDENTS}#{place}"
