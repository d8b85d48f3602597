"""Renders the templates: escaped without exception, under a policy that loads nothing from elsewhere."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from email_ingestion import __version__
from email_ingestion.web.sessions import CSRF_FIELD, WebUser

FOLDER = Path(__file__).parent
TEMPLATES = FOLDER / "templates"
STATIC = FOLDER / "static"
CONTENT_POLICY = {
    "default-src": "'none'",
    "style-src": "'self'",
    "script-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}
UNKNOWN = "not known"
NAVIGATION = (  # shown are those that the application has
    ("/", "Overview"),
    ("/mail", "Mail"),
    ("/dead-letters", "Dead letters"),
    ("/accounts", "Accounts"),
    ("/operate", "Operate"),
    ("/audit", "Audit log"),
    ("/runbooks", "Runbooks"),
)


def render(
    request: Request,
    template: str,
    user: WebUser | None = None,
    *,
    status: int = 200,
    policy: dict[str, str] | None = None,
    refresh: int = 0,
    **context: Any,
) -> HTMLResponse:
    """Return a page made from `templates/…`, which extends `base.html`; `user` is who looks at it.

    `policy` replaces parts of the content security policy, as `{"frame-src": "'self'"}`. `refresh` is after how many
    seconds a browser without JavaScript loads the page again.
    """
    common = {
        "user": user,
        "csrf_field": CSRF_FIELD,
        "navigation": _navigation(request, user),
        "here": request.url.path,
        "refresh": refresh,
        "grafana_url": None,
    }
    body = environment().get_template(template).render(common | context)
    return HTMLResponse(body, status, page_headers(policy))


def render_part(template: str, **context: Any) -> str:
    """Return a part of a page, for what moves on it."""
    return environment().get_template(template).render(context)


def page_headers(policy: dict[str, str] | None = None) -> dict[str, str]:
    """Return the headers that every page has."""
    parts = CONTENT_POLICY | (policy or {})
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in parts.items()),
        "Cache-Control": "no-store",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }


@cache
def environment() -> Environment:
    """Return the environment of all templates; an unknown name in one is an error, never silence."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "clause": format_clause,
        "span": format_span,
        "number": format_number,
        "size": format_size,
        "time": format_time,
        "age": format_age,
        "history": format_history,
    }
    made.globals["version"] = __version__
    return made


def format_clause(text: object) -> str:
    """Return a reason as a sentence goes on with it: without a full stop, which errors of others end with."""
    return str(text or "").rstrip(" .")


def format_number(value: float | None) -> str:
    """Return a number with thousands; what is not known is said."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:,.1f}"  # noqa: PLR2004


def format_span(seconds: float | None) -> str:
    """Return how long something takes, in its two largest units."""
    if seconds is None:
        return UNKNOWN
    parts: list[str] = []
    left = max(0, round(seconds))
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}" if count or not parts else "")
    return " ".join(filter(None, parts[:2]))


def format_size(value: float | None) -> str:
    """Return bytes in the unit that reads best."""
    if value is None:
        return UNKNOWN
    for unit in ("bytes", "KiB", "MiB"):
        if abs(value) < 1024:  # noqa: PLR2004
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def format_time(value: datetime | str | float | None) -> str:
    """Return a time in UTC, to the second."""
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return str(value)
    if not isinstance(value, datetime):
        value = datetime.fromtimestamp(value, UTC)
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def format_age(seconds: float | None) -> str:
    """Return how long ago a time in Unix seconds is."""
    return UNKNOWN if seconds is None else f"{format_span(time.time() - seconds)} ago"


def format_history(history: dict[str, Any] | None) -> str:
    """Return how far the import of older mail is, in words."""
    if history is None:
        return UNKNOWN
    if not history["remaining"]:
        return "complete"
    left = "end not known" if history["eta_seconds"] is None else f"{format_span(history['eta_seconds'])} left"
    return f"{history['percent']:g} %, {history['remaining']:,} to go, {left}"


def _navigation(request: Request, user: WebUser | None) -> list[tuple[str, str]]:
    if user is None:
        return []
    paths = request.app.state.page_paths
    return [(path, title) for path, title in NAVIGATION if path in paths]
