"""Gives orders to the running processes of this machine, over `POST /admin/…`, and reads back what they are at."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.fleet.managed_processes import ask, members
from email_ingestion.settings import Settings

# A process may ask its dependency before it obeys, and wait for it as long as IMAP_TIMEOUT_SECONDS.
ORDER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Live:
    """A process of this machine that answers; `body` is its `/status`."""

    stem: str
    ops_url: str
    body: dict[str, Any]

    @property
    def component(self) -> str:
        """Producer or worker."""
        return str(self.body["component"])


def live(settings: Settings) -> list[Live]:
    """All that answer."""
    found = []
    for member in members(settings):
        body = ask(f"{member.ops_url}/status") if member.pid and member.ops_url else None
        if body and member.ops_url:
            found.append(Live(member.stem, member.ops_url, body))
    return found


def some(processes: Sequence[Live], wanted: Callable[[Live], bool], what: str) -> list[Live]:
    """Those that are `wanted`; raises OperationFailed when there are none."""
    found = [each for each in processes if wanted(each)]
    if not found:
        running = ", ".join(each.stem for each in processes) or "nothing"
        raise OperationFailed(f"no process of this machine {what}; {running} runs here (`email-ingestion status`)")
    return found


class Clerk:
    """Hands orders over, with the token and the name of who gives them."""

    def __init__(self, settings: Settings, user: str) -> None:
        """Raises ConfigurationError when there is no token to be read."""
        self._token = _token(settings.ops_token_file)
        self._user = user

    def order(self, process: Live, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the process is at then; raises OperationFailed with its reason when it refuses or does not answer."""
        headers = {
            "Content-Type": "application/json",
            "X-Admin-Token": self._token,
            "X-Operator": self._user,
            "Host": "localhost",
        }
        request = urllib.request.Request(  # noqa: S310 - our own loopback URL
            f"{process.ops_url}/admin/{path}", json.dumps(body).encode(), headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=ORDER_SECONDS) as answer:  # noqa: S310
                return dict(json.load(answer)["state"])
        except urllib.error.HTTPError as error:
            raise OperationFailed(f"{process.stem} refuses: {_reason(error)}") from error
        except (OSError, ValueError, KeyError) as error:
            raise OperationFailed(f"{process.stem} does not answer: see logs/{process.stem}.log") from error


def _token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        why = f"cannot read {path}: {error.strerror}"
        raise ConfigurationError(
            f"OPS_TOKEN_FILE: {why}; the first start makes it, for the user that starts the processes"
        ) from error


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return "; ".join(json.load(error)["reasons"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"
