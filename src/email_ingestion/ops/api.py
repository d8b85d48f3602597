"""The FastAPI application of the ops port, and that of the metrics port.

Every answer comes from the status board and the metrics registry in memory; no dependency is contacted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from html import escape
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from email_ingestion.modules_left_out import without_modules
from email_ingestion.ops.admin import Admin, AdminRoutes
from email_ingestion.ops.api_models import FullHealthAnswer, HealthAnswer, ReadyAnswer, StatusAnswer
from email_ingestion.ops.metrics import Metrics
from email_ingestion.ops.runbook_routes import add_runbooks
from email_ingestion.ops.status import Status

YES = frozenset(["1", "true", "yes"])
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
DESCRIPTION = (
    "Health, readiness, status, metrics and the orders of operators. "
    "An order needs the token of OPS_TOKEN_FILE in the header X-Admin-Token."
)


@without_modules("pydantic.v1")  # loaded only to learn that no model is of that kind: 0.03 s and 3 MB
def ops_app(status: Status, metrics: Metrics, admin: Admin | None = None) -> FastAPI:
    """Make the application of the ops port; without `admin` it takes no orders."""
    app = metrics_app(metrics, f"email-ingestion {status.identity.component}", status.identity.version)

    async def health(request: Request) -> Response:
        """Whether the process's own loops turn; with `?full=1`, whether every check and circuit breaker is well too."""
        ok, body = status.full_health() if request.query_params.get("full") in YES else status.health()
        return JSONResponse(body, 200 if ok else 503)

    async def ready(_request: Request) -> Response:
        """Whether the process does its work, with the reasons if not."""
        ok, body = status.ready()
        return JSONResponse(body, 200 if ok else 503)

    async def report(_request: Request) -> Response:
        """All that is known of the process."""
        return JSONResponse(status.report())

    for path in ("/health", "/livez"):
        _add_get(app, path, health, HealthAnswer | FullHealthAnswer, unavailable="A loop has stalled.")
    for path in ("/ready", "/readyz"):
        _add_get(app, path, ready, ReadyAnswer, unavailable="The process does no work.")
    _add_get(app, "/status", report, StatusAnswer)
    if admin:
        AdminRoutes(admin).add_to(app)
    _add_docs(app)
    add_runbooks(app)
    return app


@without_modules("pydantic.v1")  # loaded only to learn that no model is of that kind: 0.03 s and 3 MB
def metrics_app(metrics: Metrics, title: str = "email-ingestion metrics", version: str = "") -> FastAPI:
    """Make an application that serves `/metrics`, and the list of its paths at `/`."""
    # FastAPI's pages need scripts from the Internet, and its schema would be made in the event loop.
    app = FastAPI(title=title, version=version, description=DESCRIPTION, openapi_url=None, redirect_slashes=False)

    async def exposition(_request: Request) -> Response:
        """The metrics in the text format of Prometheus."""
        return Response(metrics.render(), media_type=EXPOSITION)

    async def paths(_request: Request) -> Response:
        """The paths of this server, one per line."""
        found = dict.fromkeys(getattr(route, "path", "") for route in app.routes)
        return PlainTextResponse("\n".join(found) + "\n")

    _add_get(app, "/", paths, response_class=PlainTextResponse)
    _add_get(app, "/metrics", exposition, response_class=PlainTextResponse)
    return app


def _add_get(
    app: FastAPI,
    path: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    model: Any = None,
    *,
    unavailable: str | None = None,
    response_class: type[Response] = JSONResponse,
) -> None:
    """Add a path for GET and HEAD; `model`, one or several, documents the answer, `unavailable` its status 503."""
    responses: dict[int | str, dict[str, Any]] = {503: {"model": model, "description": unavailable}}
    app.add_api_route(
        path,
        endpoint,
        methods=["GET"],
        response_model=model,
        response_class=response_class,
        responses=responses if unavailable else None,
        tags=["reading"],
    )

    app.add_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


def _add_docs(app: FastAPI) -> None:
    """Add `/openapi.json` and `/docs`; both are synchronous, so that making the schema does not delay other answers."""

    def schema() -> Response:
        return JSONResponse(app.openapi())

    def docs() -> Response:
        return HTMLResponse(_page(app.openapi()))

    for path, endpoint in (("/openapi.json", schema), ("/docs", docs)):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None, include_in_schema=False)


def _page(schema: dict[str, Any]) -> str:
    """Render a schema as one page that needs no script and nothing from the Internet."""
    info = schema["info"]
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td><td>{escape(it['description'])}</td>"
        f"<td>{_reference(it.get('requestBody', {}))}</td><td>{_reference(it['responses'].get('200', {}))}</td></tr>"
        for path, methods in schema["paths"].items()
        for method, it in methods.items()
    )
    models = "".join(
        f"<h3 id='{escape(name)}'>{escape(name)}</h3><p>{escape(model.get('description', ''))}</p><ul>"
        + "".join(f"<li><code>{escape(key)}</code> {_type(value)}</li>" for key, value in _properties(model))
        + "</ul>"
        for name, model in schema.get("components", {}).get("schemas", {}).items()
    )
    title = escape(f"{info['title']} {info['version']}")
    return (
        f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>{title}</title>"
        "<style>body{font:16px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
        "td,th{text-align:left;vertical-align:top;padding:.2em .8em .2em 0}</style>"
        f"<h1>{title}</h1><p>{escape(info['description'])} The schema: <a href='/openapi.json'>/openapi.json</a></p>"
        f"<table><tr><th>Method<th>Path<th>Purpose<th>Body<th>Answer</tr>{rows}</table><h2>Models</h2>{models}</html>\n"
    )


def _properties(model: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(model.get("properties", {}).items())


def _reference(content: dict[str, Any]) -> str:
    media = content.get("content", {}).get("application/json", {})
    return _type(media["schema"]) if media.get("schema") else ""


def _type(schema: dict[str, Any]) -> str:
    """Render the type of a property in words, models as links."""
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return escape(" | ".join(str(each) for each in schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(schema.get("type", "")))
