"""A client of Alertmanager's API v2: which alerts it has, and silences by the name of an alert."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import translate
from typing import Any
from urllib.parse import quote

from email_ingestion.errors import OperationFailed

SECONDS = 10.0
MAX_BYTES = 16 * 1024 * 1024  # of an answer
PREFIX = "EmailIngestion"
_REFUSED = "the Alertmanager of ALERTMANAGER_URL does not do it"


class Alertmanager:
    """One Alertmanager. Every method raises OperationFailed when it does not answer, or not as one."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def alerts(self) -> list[dict[str, Any]]:
        """Return its alerts of ours but for the watchdog, the most urgent first."""
        with _as_of_an_alertmanager():
            rows = [
                {
                    "alert": each["labels"]["alertname"],
                    "priority": each["labels"].get("priority", ""),
                    "state": "firing" if each["status"]["state"] == "active" else each["status"]["state"],
                    "since": each["startsAt"][:19] + "+00:00",
                    "text": each.get("annotations", {}).get("summary", ""),
                    "runbook": each.get("annotations", {}).get("runbook_url", ""),
                }
                for each in self._call("GET", "alerts")
                if each["labels"].get("severity") != "none"
            ]
            return sorted(rows, key=lambda row: (row["priority"], row["since"]))

    def silence(self, pattern: str, start: float, end: float, user: str, comment: str) -> None:
        """Silence the alerts whose name fits a pattern, and whose subject does where the pattern has one."""
        for old in self._silences(pattern):
            self._call("DELETE", f"silence/{quote(old, safe='')}")
        body = {
            "matchers": [_matcher(pattern)],
            "startsAt": _time(start),
            "endsAt": _time(end),
            "createdBy": user,
            "comment": f"{pattern}: {comment}",
        }
        self._call("POST", "silences", body)

    def end(self, pattern: str) -> int:
        """End the silences that were made for a pattern; return how many there were."""
        found = self._silences(pattern)
        for each in found:
            self._call("DELETE", f"silence/{quote(each, safe='')}")
        return len(found)

    def _silences(self, pattern: str) -> list[str]:
        with _as_of_an_alertmanager():
            return [
                str(each["id"])
                for each in self._call("GET", "silences")
                if each["status"]["state"] != "expired" and each["matchers"] == [_matcher(pattern)]
            ]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        import httpx  # noqa: PLC0415 - slow to load

        from email_ingestion.http_requests import ask  # noqa: PLC0415

        try:
            answer = ask(method, f"{self._url}/api/v2/{path}", seconds=SECONDS, max_bytes=MAX_BYTES, body=body)
            if not answer.is_success:
                raise OperationFailed(f"{_REFUSED}: it answers {answer.status}")
            return answer.json() if method != "DELETE" else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise OperationFailed(f"{_REFUSED}: {type(error).__name__}") from error


@contextmanager
def _as_of_an_alertmanager() -> Iterator[None]:
    """Raise OperationFailed for JSON that no Alertmanager writes."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise OperationFailed(f"{_REFUSED}: its answer is not that of an Alertmanager") from error


def _matcher(pattern: str) -> dict[str, Any]:
    """Return the matcher for a name or a pattern of it: our names begin with EmailIngestion there."""
    name = pattern.removeprefix(PREFIX).partition("/")[0]
    expression = re.sub(r"^\(\?s:(.*)\)(\\Z|\\z)$", r"\1", translate(name))
    return {"name": "alertname", "value": f"{PREFIX}{expression}", "isRegex": True, "isEqual": True}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
