"""What the web process answers instead of what was asked: `{"error": {"code", "message"}}`, or a plain page.

400 bad_request          the query cannot be understood
401 unauthorized         no token, or none that is valid
403 forbidden            more than the token may see
404 not_found            nothing of that name, as far as the token may see
405 method_not_allowed
409 ambiguous            the beginning of an identity that several messages have
409 not_done             an order that is refused, or failed
410 gone                 changes that are not kept any more; with Change-Feed-Start
413 too_large            the body of the request
421 misdirected_request  a Host that WEB_ALLOWED_HOSTS does not name
429 too_many_requests    with Retry-After
431 head_too_large       address and header fields together
503 unavailable          what would have to be asked is away, or does not answer in time
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from email_ingestion.errors import (
    ConfigurationError,
    PermanentError,
    ThreadUnavailable,
    TransientError,
    is_thread_shortage,
)
from email_ingestion.ops.logs import logger
from email_ingestion.ops.redaction import describe_error, error_type
from email_ingestion.process_limits import describe_thread_limits
from email_ingestion.web.rendering import format_clause, render

API_PATHS = ("/api/", "/openapi.json")
CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "ambiguous",
    410: "gone",
    413: "too_large",
    421: "misdirected_request",
    429: "too_many_requests",
    431: "head_too_large",
    503: "unavailable",
}
TITLES = {400: "Not understood", 404: "Not found", 405: "Not found", 500: "Failed", 503: "Not known"}
REFUSED_VALUE = "a value of the query is one that the database cannot look for"
MESSAGES = {404: "there is nothing here", 405: "this method is not for this path"}


class WebError(Exception):
    """A request that gets another answer than it asked for; `message` is one sentence for who sent it."""

    def __init__(
        self, status: int, message: str, headers: Mapping[str, str] | None = None, *, code: str | None = None
    ) -> None:
        """`code` is the word for it where the status has another one."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        self.code = code


def add_error_answers(app: FastAPI) -> None:
    """Let every failure of a request end in one of the answers above; what nobody foresaw is logged."""
    app.add_exception_handler(WebError, _of_web_error)
    app.add_exception_handler(HTTPException, _of_http_exception)
    app.add_exception_handler(RequestValidationError, _of_validation)
    for kind in (TransientError, ConfigurationError):
        app.add_exception_handler(kind, _of_dependency)
    app.add_exception_handler(PermanentError, _of_refused_value)
    app.add_exception_handler(Exception, _of_unforeseen)


def error_answer(
    path: str, status: int, message: str, headers: Mapping[str, str] | None = None, *, code: str | None = None
) -> Response:
    """Make the answer: JSON below /api, one line of text elsewhere."""
    given = dict(headers or {})
    if path.startswith(API_PATHS):
        body = {"error": {"code": code or CODES.get(status, "failed"), "message": message}}
        return JSONResponse(body, status, given)
    return PlainTextResponse(f"{as_sentence(message)}\n", status, given)


def as_sentence(message: str) -> str:
    """Return a message with a capital and one full stop."""
    return f"{message[:1].upper()}{format_clause(message[1:])}."


def _answer(
    request: Request, status: int, message: str, headers: Mapping[str, str] | None = None, *, code: str | None = None
) -> Response:
    """Make the answer: a page for a person, `error_answer` for a program."""
    path, state = request.url.path, request.app.state
    is_page = "text/html" in request.headers.get("accept", "") and not path.startswith(API_PATHS)
    if not is_page or not hasattr(state, "entry"):
        return error_answer(path, status, message, headers, code=code)
    user, text = state.entry.user_of(request, touch=False), as_sentence(message)
    page = render(request, "message.html", user, title=TITLES.get(status, "Not done"), text=text, status=status)
    page.headers.update(headers or {})
    return page


def _of_web_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WebError)  # noqa: S101 - so registered
    return _answer(request, error.status, error.message, error.headers, code=error.code)


def _of_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - so registered
    message = MESSAGES.get(error.status_code, str(error.detail))
    return _answer(request, error.status_code, message, error.headers)


def _of_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - so registered
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "the request"
    return _answer(request, 400, f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}")


def _of_dependency(request: Request, error: Exception) -> Response:
    logger("web").warning("web_request_failed", error_type=error_type(error), message=describe_error(error))
    return _answer(request, 503, str(error))


def _of_refused_value(request: Request, error: Exception) -> Response:
    del error
    return _answer(request, 400, REFUSED_VALUE)


def _of_unforeseen(request: Request, error: Exception) -> Response:
    if is_thread_shortage(error):
        return _of_dependency(request, ThreadUnavailable(f"no thread can be started ({describe_thread_limits()})"))
    logger("web").error("web_request_failed", error_type=error_type(error), exc_info=error)
    return _answer(request, 500, "this failed in a way that nobody foresaw; logs/web.log says more")
