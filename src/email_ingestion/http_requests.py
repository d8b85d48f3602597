"""Single requests to addresses of the settings, where anybody may answer: an answer is bounded, whatever it is.

No redirect is followed: where it leads was set by nobody, and may be an address that only this machine can reach.
Nothing is unpacked, for a few bytes may become gigabytes. An answer ends at a size and at a time, however slowly it
comes. Only `http` and `https` are spoken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from email_ingestion.background import run_within

MAX_BYTES = 1024 * 1024
UNPACKED = {"Accept-Encoding": "identity"}


class AnswerTooLong(httpx.HTTPError):
    """The answer has more bytes than it may, or is packed though nobody asked for that."""


class AnswerTooLate(httpx.HTTPError):
    """The answer was not whole when its time was over."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What was answered."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx: a redirect is none."""
        return 200 <= self.status < 300  # noqa: PLR2004 - as HTTP has it

    def json(self) -> Any:
        """Return the content as JSON; an empty one is None. Raises ValueError, for brackets without end too."""
        try:
            return json.loads(self.content) if self.content else None
        except RecursionError as error:
            raise ValueError("the answer is nested too deeply") from error


def ask(
    method: str,
    url: str,
    *,
    seconds: float,
    silence: float | None = None,
    max_bytes: int = MAX_BYTES,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    form: Mapping[str, str] | None = None,
) -> HttpAnswer:
    """Send one request, with `body` as JSON or with `form`, and return the answer, which may take `seconds` in all.

    `silence` is the longest wait for a piece of it. Raises httpx.HTTPError, of which AnswerTooLong and AnswerTooLate
    are, and httpx.InvalidURL.
    """
    with httpx.Client(timeout=silence or seconds, follow_redirects=False) as client:
        options: dict[str, Any] = {"json": body} if body is not None else {"data": dict(form or {})} if form else {}
        request = client.build_request(method, url, headers={**(headers or {}), **UNPACKED}, **options)
        try:
            return run_within(seconds, lambda: _send(client, request, max_bytes))
        except TimeoutError as error:  # the end of the client ends the request
            raise AnswerTooLate(f"the whole answer has not come within {seconds:.0f} s") from error


def _send(client: httpx.Client, request: httpx.Request, max_bytes: int) -> HttpAnswer:
    answer = client.send(request, stream=True)
    try:
        content = read_whole(answer, max_bytes)
    finally:
        answer.close()
    return HttpAnswer(answer.status_code, answer.headers, content)


def read_whole(answer: httpx.Response, max_bytes: int) -> bytes:
    """Return the content of an answer whose body was not read. Raises AnswerTooLong."""
    if answer.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise AnswerTooLong("the answer is packed, and nobody asked for that")
    content = bytearray()
    for piece in answer.iter_raw():
        content += piece
        if len(content) > max_bytes:
            raise AnswerTooLong(f"the answer has more than {max_bytes // 1024} KiB")
    return bytes(content)
