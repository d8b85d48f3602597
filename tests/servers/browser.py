"""A real browser for tests: Debian's Chromium, each visit with a log of all it asked for, said and ran into."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Request, expect, sync_playwright

from tests.servers.missing import program

expect.set_options(timeout=60_000)  # milliseconds: generous, for it only matters when something is broken

PATIENCE_MS = 60_000.0
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 375, "height": 740}


@dataclass
class Visit:
    """A browser context with one page. The lists grow while it is used."""

    context: BrowserContext
    page: Page
    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("dialog", self._on_dialog)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def foreign(self, *own: str) -> list[str]:
        """What was asked of others than these URLs' beginnings."""
        return [each for each in self.requests if not each.startswith((*own, "data:", "about:", "chrome-error:"))]

    def _on_console(self, message: ConsoleMessage) -> None:
        self.console.append(message.text)

    def _on_dialog(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Yield a Chromium without a window; skip where there is none."""
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(browser: Browser, **options: Any) -> Iterator[Visit]:
    """Yield a fresh context (no cookies) with a page, wide and light unless told otherwise."""
    context = browser.new_context(**{"viewport": WIDE, "color_scheme": "light", "reduced_motion": "reduce"} | options)
    context.set_default_timeout(PATIENCE_MS)
    made = Visit(context, context.new_page())

    def on_request(request: Request) -> None:
        made.requests.append(request.url)

    context.on("request", on_request)
    context.on("page", made.watch)
    made.watch(made.page)
    try:
        yield made
    finally:
        context.close()


@dataclass
class Answer:
    """What the server of a test answers for one path."""

    body: bytes
    headers: dict[str, str]


@contextmanager
def answering(answers: dict[str, Answer], asked: list[str] | None = None) -> Iterator[str]:
    """Serve these paths on the loopback interface and note down every path that is asked for; yield the URL."""

    class _Requests(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            found = answers.get(self.path)
            self.send_response(200 if found else 404)
            for name, value in (found.headers if found else {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(found.body if found else b"")

        do_POST = do_HEAD = do_GET  # noqa: N815 - as above

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Requests)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
