"""The web process's application on a port of its own, in a thread, and a client that behaves like a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from email_ingestion.ops.http_server import serve_app
from email_ingestion.settings import Settings
from email_ingestion.web.api_errors import add_error_answers
from email_ingestion.web.context import WebContext
from email_ingestion.web.login_links import Role, make_link
from email_ingestion.web.pages.routes import add_pages

SECONDS = 20.0


def web_settings(folder: Path, redis_url: str = "redis://127.0.0.1:1/0", **changes: Any) -> Settings:
    """Return settings whose files all lie in `folder`, with nothing that runs."""
    values: dict[str, Any] = {
        "redis_url": redis_url,
        "database_url": f"sqlite:///{folder}/ledger.db",
        "blob_url": f"file:{folder}/blobs",
        "google_token_file": folder / "token.json",
        "ops_token_file": folder / "ops-token",
        "erasure_dir": folder / "erasure",
        "log_dir": folder / "logs",
        "pid_dir": folder / "pids",
        "backup_dir": folder / "backups",
        "ops_port": 0,
    }
    for name in ("log_dir", "pid_dir", "backup_dir"):
        values[name].mkdir(exist_ok=True)
    return Settings(**(values | changes))


@contextmanager
def running_pages(settings: Settings) -> Iterator[str]:
    """Serve the pages for the block; yield their address."""
    app = FastAPI(openapi_url=None)
    app.state.context = WebContext.from_settings(settings)
    add_error_answers(app)
    add_pages(app, settings)
    server = serve_app(app, "127.0.0.1", 0, "WEB_PORT", "test-web-http")
    try:
        yield server.url
    finally:
        app.state.live_system.close()
        app.state.context.close()
        server.close()
        app.state.account_pages.close()


class Visitor(httpx.Client):
    """A browser without JavaScript: it follows links, sends the forms it was shown, and keeps cookies."""

    def __init__(self, address: str, **options: Any) -> None:
        headers = {"Accept": "text/html"}
        super().__init__(base_url=address, headers=headers, follow_redirects=True, timeout=SECONDS, **options)

    def enter(self, settings: Settings, role: Role = "operator", user: str = "ada") -> httpx.Response:
        """Log in with a one-time link."""
        link = make_link(settings.ops_token_file.read_text().strip(), user, role)
        return self.post(f"/login/{link}", data={"goal": "/runbooks"})

    def submit(self, page: httpx.Response, action: str, **fields: str) -> httpx.Response:
        """Send the form of a page whose action begins so, with these fields beside its hidden ones."""
        for form in re.findall(r"<form[^>]*>.*?</form>", page.text, re.DOTALL):
            found = re.search(r'action="([^"]*)"', form)
            if found and unescape(found[1]).startswith(action) and _has(form, fields):
                hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form)
                data = {unescape(name): unescape(value) for name, value in hidden}
                return self.post(unescape(found[1]), data=data | fields)
        raise AssertionError(f"the page has no form for {action} with {sorted(fields)}")


def _has(form: str, fields: dict[str, str]) -> bool:
    return all(f'name="{name}"' in form for name in fields)
