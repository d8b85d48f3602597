"""Coming in and leaving: the one-time link, the token of OPS_TOKEN_FILE, the session cookie, the logout.

Opening a link uses nothing up: chat tools open every link they see, to show a preview. Only its button does.
"""

from __future__ import annotations

import hmac
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from email_ingestion.web.login_links import LinkRefused, Role
from email_ingestion.web.rendering import page_headers, render
from email_ingestion.web.sessions import (
    COOKIE,
    IDLE_SECONDS,
    SESSION_SECONDS,
    CurrentUser,
    LoginNeeded,
    RequestRefused,
    WebEntry,
    address_of,
    clean_name,
    refuse_foreign_origin,
)

UNAUTHORIZED, FORBIDDEN, TOO_MANY = 401, 403, 429
HOME = "/"
ENDED = "Your session has ended, and nothing was done. Log in, and give the order again."
LINK_PREFIX = "link "  # wrong links and wrong tokens of an address are counted apart

router = APIRouter(include_in_schema=False)


@router.get("/login")
def login_page(request: Request, goal: str = HOME, ended: str = "") -> Response:
    """Ask for the token; whoever is in already goes on."""
    entry: WebEntry = request.app.state.entry
    if entry.user_of(request):
        return _see(safe_goal(goal))
    return _login_page(request, goal, ENDED if ended else "")


@router.post("/login")
def login(
    request: Request,
    token: Annotated[str, Form()] = "",
    name: Annotated[str, Form()] = "",
    goal: Annotated[str, Form()] = HOME,
) -> Response:
    """Open a session for who has the token of OPS_TOKEN_FILE, as operator under the name that was given."""
    refuse_foreign_origin(request)
    entry: WebEntry = request.app.state.entry
    address = address_of(request)
    if wait := entry.attempts.wait_seconds(address):
        return _wait(request, goal, wait)
    if not hmac.compare_digest(token.strip().encode(), entry.token.encode()):
        entry.attempts.failed(address)
        entry.record(clean_name(name) or "unknown", address, "web login", "refused", reason="wrong token")
        return _login_page(request, goal, "This is not the token of OPS_TOKEN_FILE.", UNAUTHORIZED)
    entry.attempts.succeeded(address)
    return _enter(request, clean_name(name) or "operator", "operator", goal, by="token")


@router.get("/login/{link}")
def link_page(request: Request, link: str, goal: str = HOME) -> Response:
    """Show the button of a one-time link."""
    entry: WebEntry = request.app.state.entry
    try:
        found = entry.links.check(link)
    except LinkRefused as error:
        return _refused_link(request, str(error))
    return render(request, "login_link.html", link=found, text=link, goal=safe_goal(goal))


@router.post("/login/{link}")
def use_link(request: Request, link: str, goal: Annotated[str, Form()] = HOME) -> Response:
    """Open a session with a one-time link, which is used up then."""
    refuse_foreign_origin(request)
    entry: WebEntry = request.app.state.entry
    address = address_of(request)
    if wait := entry.attempts.wait_seconds(LINK_PREFIX + address):
        return _wait(request, goal, wait)
    try:
        found = entry.links.use(link)
    except LinkRefused as error:
        entry.attempts.failed(LINK_PREFIX + address)
        entry.record("unknown", address, "web login", "refused", reason=str(error))
        return _refused_link(request, str(error))
    entry.attempts.succeeded(LINK_PREFIX + address)
    return _enter(request, found.user, found.role, goal, by="link")


@router.post("/logout")
def logout(request: Request, user: CurrentUser) -> Response:
    """End the session."""
    entry: WebEntry = request.app.state.entry
    entry.sessions.close(request.cookies.get(COOKIE, ""))
    entry.record(user.name, user.address, "web logout")
    answer = _see("/login")
    answer.delete_cookie(COOKIE, path="/", secure=entry.is_secure(request), httponly=True, samesite="lax")
    return answer


def safe_goal(goal: str) -> str:
    """Return a path of our own to go to, whatever a link says."""
    parts = urlsplit(goal.strip())
    is_ours = not parts.scheme and not parts.netloc and goal.startswith("/") and "\\" not in goal
    return goal if is_ours and not goal.startswith("//") and goal.isprintable() else HOME


def _enter(request: Request, name: str, role: Role, goal: str, *, by: str) -> Response:
    entry: WebEntry = request.app.state.entry
    if before := request.cookies.get(COOKIE):
        entry.sessions.close(before)
    cookie = entry.sessions.open(name, role)
    entry.record(name, address_of(request), "web login", role=role, by=by)
    answer = _see(safe_goal(goal))
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=int(SESSION_SECONDS),
        path="/",
        secure=entry.is_secure(request),
        httponly=True,
        samesite="lax",
    )
    return answer


def _see(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303, page_headers())


def _login_page(request: Request, goal: str, problem: str = "", status: int = 200) -> Response:
    hours = IDLE_SECONDS / 3600
    return render(request, "login.html", goal=safe_goal(goal), problem=problem, idle_hours=hours, status=status)


def _refused_link(request: Request, reason: str) -> Response:
    sentence = f"{reason[0].upper()}{reason[1:]}: email-ingestion web login-link prints a new one."
    return _login_page(request, HOME, sentence, FORBIDDEN)


def _wait(request: Request, goal: str, seconds: float) -> Response:
    wait = int(seconds) + 1
    answer = _login_page(request, goal, f"Too many wrong attempts: try again in {wait} s.", TOO_MANY)
    answer.headers["Retry-After"] = str(wait)
    return answer


def answer_login_needed(request: Request, _error: Exception) -> Response:
    """Lead a person to the login, and tell a program that it has none."""
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        goal = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return _see("/login" if goal == "/" else f"/login?goal={quote(goal, safe='')}")
    if request.method == "POST" and "text/html" in request.headers.get("accept", ""):
        came_from = urlsplit(request.headers.get("referer", ""))
        goal = came_from.path if came_from.netloc == request.headers.get("host") else HOME
        return _see(f"/login?goal={quote(safe_goal(goal), safe='')}&ended=1")  # not an answer to the form: "back" works
    sentence = "log in first: email-ingestion web login-link prints a link"
    return JSONResponse({"error": {"code": "unauthorized", "message": sentence}}, UNAUTHORIZED, page_headers())


def answer_refused(request: Request, error: Exception) -> Response:
    """Say why a request is not allowed."""
    user = request.app.state.entry.user_of(request, touch=False)
    return render(request, "message.html", user, title="Not allowed", text=str(error), status=FORBIDDEN)


EXCEPTION_HANDLERS = {LoginNeeded: answer_login_needed, RequestRefused: answer_refused}
