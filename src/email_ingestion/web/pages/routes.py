"""Hangs the pages into the application of the web process.

A page is an `APIRouter` of its own; the navigation shows those of its entries that the application has.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from starlette.staticfiles import StaticFiles

from email_ingestion.settings import Settings
from email_ingestion.web.jobs import Jobs
from email_ingestion.web.letter_orders import LetterOrders
from email_ingestion.web.live_system import LiveSystem
from email_ingestion.web.pages import (
    account_pages,
    letter_groups,
    login,
    mail_search,
    message,
    message_orders,
    operate,
    orders,
    overview,
    part_orders,
    runbooks,
)
from email_ingestion.web.rendering import NAVIGATION, STATIC
from email_ingestion.web.sessions import WebEntry

ROUTERS: tuple[APIRouter, ...] = (
    login.router,
    overview.router,
    mail_search.router,
    message.router,
    message_orders.router,
    letter_groups.router,
    operate.router,
    part_orders.router,
    orders.router,
    account_pages.router,
    runbooks.router,
)


def add_pages(app: FastAPI, settings: Settings) -> None:
    """Add entry, pages and static files to `app`. Raises ConfigurationError when OPS_TOKEN_FILE cannot be made."""
    app.state.entry = WebEntry(settings)
    app.state.live_system = LiveSystem(settings)
    app.state.overview_streams = 0
    app.state.jobs = Jobs()
    app.state.letter_orders = LetterOrders(settings, app.state.live_system)
    app.state.operator_pages = operate.OperatorPages(settings, app.state.live_system)
    app.state.account_pages = account_pages.AccountPages(settings, app.state.live_system)
    app.state.live_system.start()
    for router in ROUTERS:
        app.include_router(router)
    app.state.page_paths = page_paths(ROUTERS)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for kind, handler in login.EXCEPTION_HANDLERS.items():
        app.add_exception_handler(kind, handler)


def page_paths(routers: tuple[APIRouter, ...]) -> frozenset[str]:
    """Return which entries of the navigation there are."""
    there = {getattr(route, "path", "") for router in routers for route in router.routes}
    return frozenset(path for path, _ in NAVIGATION if path in there)
