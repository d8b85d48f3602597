"""The sink that posts each message to a URL, signed according to the Standard Webhooks specification.

2xx means taken. 408, 425, 429, and 503 with Retry-After mean a pause for all messages, other 4xx a dead letter. Any
other answer, and no answer in time, mean another attempt and a failure of the webhook; so do 401, 403 and 407, which
are about us, and any refusal by a receiver whose clock differs from ours, for it judges a post by the time in it.
"""

from __future__ import annotations

import json
import math
import socket
import ssl
import threading
import time
from binascii import Error as Base64Error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.request import getproxies, proxy_bypass

import httpx
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from email_ingestion import __version__
from email_ingestion.certificates import explain_tls_error
from email_ingestion.email_json import as_json
from email_ingestion.errors import (
    ConfigurationError,
    OperationFailed,
    PermanentError,
    SinkFailed,
    SinkThrottled,
    SinkTimedOut,
    SinkUnavailable,
)
from email_ingestion.http_requests import UNPACKED, AnswerTooLong, read_whole
from email_ingestion.ledger.model import ErasureNotice
from email_ingestion.records import ChangeEvent, ChangeKind, SinkMessage

if TYPE_CHECKING:
    from email_ingestion.settings import Settings

EVENT: Final = "email.received"
ERASED: Final = "email.erased"
MISSED: Final = "changes.missed"
_CONNECT_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 30.0  # where the answer asks for one and does not say how long
_PAUSE_STATUSES: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_CREDENTIALS: Final = frozenset({401, 403, 407})  # it does not know our signature, or a proxy does not let us through
_CLOCK_SECONDS: Final = 60.0  # by which the receiver's clock may differ; its library refuses posts five minutes off
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_NO_DIGEST: Final = frozenset({404, 405, 410, 501})
_DIGEST_SECONDS: Final = 60.0  # for which a receiver may compute one
_DIGEST_BYTES: Final = 16 << 20
_Headers = Mapping[str, str]
_NO_HEADERS: Final[_Headers] = MappingProxyType({})
_LAST_YEAR: Final = 9000  # of a receiver's clock; a signature by one at the end of the calendar would go beyond it
_PROBE_SECONDS: Final = 300.0  # after a failure, for which the answer to an OPTIONS counts
_KEY_COMMAND: Final = "python -c 'import base64, os; print(\"whsec_\" + base64.b64encode(os.urandom(32)).decode())'"


def open_sink(settings: Settings) -> WebhookSink:
    """Open the sink for WEBHOOK_URL and WEBHOOK_SECRET without connecting. Raises ConfigurationError."""
    return WebhookSink(
        _checked_url(settings.webhook_url or ""),
        _signers(settings.webhook_secret or ""),
        timeout=min(settings.webhook_timeout_seconds, settings.sink_timeout),
        parallel=settings.worker_threads,
        max_attachment_bytes=settings.blob_threshold_bytes,
        cloud_events=settings.webhook_envelope == "cloudevents",
    )


def _checked_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigurationError("SINKS names webhook: set WEBHOOK_URL to the http:// or https:// address to post to")
    return parsed


def _signers(secrets: str) -> tuple[Webhook, ...]:
    try:
        signers = tuple(Webhook(secret.strip()) for secret in secrets.split(",") if secret.strip())
    except (Base64Error, ValueError, EmptyWebhookSecretError):
        signers = ()
    if not signers:
        raise ConfigurationError(
            f"SINKS names webhook: set WEBHOOK_SECRET to whsec_ and a key in base64; make one with {_KEY_COMMAND}"
        )
    return signers


class WebhookSink:
    """Posts messages; a receiver recognises a repetition by its `webhook-id`, which is the message's identity."""

    name = "webhook"

    def __init__(
        self,
        url: httpx.URL,
        signers: Sequence[Webhook],
        *,
        timeout: float,
        parallel: int,
        max_attachment_bytes: int,
        cloud_events: bool = False,
    ) -> None:
        self.parallel = parallel
        self._cloud_events = cloud_events
        self._url = url
        self._signers = signers  # the newest first; all of them sign, so that a receiver may have any
        self._max_attachment_bytes = max_attachment_bytes  # bytes of an attachment that still travels along
        self._failed_at = -math.inf  # by the clock: it did not take the last message, which was not to blame
        self._offset = timedelta()  # of our clock before the receiver's, where that had refused a post
        self._connect_timeout = min(timeout, _CONNECT_SECONDS)  # for a connection, and for the answer to a ping
        self._timeout = timeout  # of a post, all in all
        self._tls = httpx.create_ssl_context()
        self._clients = threading.local()
        self._open: list[_Client] = []
        self._patient: _Client | None = None

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """Post each message; because of `parallel` there is one."""
        for message in batch:
            self._sent(partial(self._post, message))

    def _sent(self, send: Callable[[], None]) -> None:
        try:
            send()
        except (SinkFailed, SinkUnavailable):
            self._failed_at = time.monotonic()
            raise
        self._failed_at = -math.inf

    def ping(self) -> None:
        """Open a connection, with its TLS, and send no request: any request may trigger the receiver's action.

        After a failed delivery send OPTIONS for some minutes, because a connection alone shows nothing then; not for
        longer, because some receivers fail at any OPTIONS.
        """
        if time.monotonic() - self._failed_at < _PROBE_SECONDS:
            self._probe()
        else:
            self._connect()

    def _probe(self) -> None:
        """Send OPTIONS, which triggers no action (RFC 9110, section 9.3.7); 501 counts as a good answer."""
        try:
            with self._client.stream("OPTIONS", self._url, self._connect_timeout) as response:
                status = response.status_code
        except _DeadlineExceeded as error:
            raise SinkUnavailable(f"the webhook does not answer within {self._connect_timeout:g} s") from error
        except httpx.HTTPError as error:
            raise SinkUnavailable(f"the webhook does not answer: {self._cause(error)}") from error
        if status in _REDIRECTS:
            raise SinkUnavailable(f"the webhook answers {status}, to OPTIONS too: set WEBHOOK_URL to where it leads")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED:
            raise SinkUnavailable(f"the webhook answers {status}, to OPTIONS too")

    def _connect(self) -> None:
        host, port = _next_hop(self._url)
        direct = (host, port) == _address(self._url)
        try:
            with socket.create_connection((host, port), self._connect_timeout) as connection:
                if self._url.scheme == "https" and direct:  # a proxy must be asked for the way first
                    self._tls.wrap_socket(connection, server_hostname=host).close()
        except OSError as error:
            raise SinkUnavailable(f"the webhook's host does not answer: {self._cause(error)}") from error

    def _cause(self, error: BaseException) -> str:
        """Say why there was no answer: what httpx raises is seldom more than a name."""
        tls = explain_tls_error(error, *_address(self._url))
        if tls:
            self._read_authorities()
            return tls
        cause = _first_cause(error)
        text = cause.strerror if isinstance(cause, OSError) else None
        return text or str(error) or type(error).__name__

    def _read_authorities(self) -> None:
        """Trust what the file of authorities has by now: a receiver with another authority needs no restart of ours."""
        with suppress(OSError):  # SSLError is one
            there = httpx.create_ssl_context()
            # Not added to the old ones: before Python 3.13 an authority of the same name would still be taken first.
            if there.get_ca_certs(binary_form=True) != self._tls.get_ca_certs(binary_form=True):
                self._tls = there

    def close(self) -> None:
        """Close the connections."""
        for client in self._open:
            client.close()

    @property
    def _client(self) -> _Client:
        """The client of this thread."""
        known: _Client | None = getattr(self._clients, "client", None)
        client = self._clients.client = self._of_today(known, self._timeout)
        return client

    @property
    def _digest_client(self) -> _Client:
        """A client that waits as long as a receiver may compute a digest: one thread asks for them."""
        self._patient = self._of_today(self._patient, _DIGEST_SECONDS)
        return self._patient

    def _of_today(self, known: _Client | None, timeout: float) -> _Client:
        """Return the client, or another one where there is none yet or other authorities are trusted by now."""
        if known and known.tls is self._tls:
            return known
        if known:
            self._open.remove(known)
            known.close()
        client = _Client(timeout, self._connect_timeout, self._tls)
        self._open.append(client)
        return client

    def _post(self, message: SinkMessage) -> None:
        email = message.email
        record = as_json(email, self._max_attachment_bytes)
        self._send(
            _Event(EVENT, email.email_id, email.envelope.account, email.email_id, email.envelope.internaldate), record
        )

    def tell_changes(self, events: Sequence[ChangeEvent]) -> None:
        """Post each change; because of `parallel` there is one."""
        for event in events:
            record = event.as_json()
            if event.kind is ChangeKind.ERASED:
                record["erased_at"] = (event.erased_at or event.at).astimezone(UTC).isoformat()
            name = f"email.{event.kind.value}"
            made = _Event(name, event.event_id, event.account, event.email_id, event.at, event.seq)
            self._sent(partial(self._send, made, record))

    def tell_missed(self, start_from: int) -> None:
        """Post that changes before that number were missed."""
        made = _Event(MISSED, f"missed:{start_from}", "", "", datetime.now(UTC))
        self._sent(partial(self._send, made, {"start_from": start_from}))

    def tell_erased(self, notice: ErasureNotice) -> None:
        """Post that a message was erased. Raises as `deliver` does."""
        record = {"email_id": notice.email_id, "erased_at": notice.erased_at.astimezone(UTC).isoformat()}
        account = notice.email_id.rsplit(":", 2)[0]
        self._send(_Event(ERASED, f"erased:{notice.email_id}", account, notice.email_id, notice.erased_at), record)

    def get_digest(self, node: str) -> tuple[Any, int]:
        """Return what the receiver says of a node of its digest tree, as JSON, and how many bytes that took both ways.

        Raises OperationFailed when it offers no digest, SinkFailed and SinkUnavailable when it does not answer.
        """
        url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/digest").copy_add_param("node", node)
        try:
            return self._get(url, node)
        except SinkUnavailable:
            if not self._offset:
                raise
            return self._get(url, node)  # signed by the receiver's clock now

    def _get(self, url: httpx.URL, node: str) -> tuple[Any, int]:
        offset = self._offset
        headers = self._signed(f"digest:{node}", datetime.now(UTC) - offset, json.dumps(node)) | UNPACKED
        with (
            self._translated(_DIGEST_SECONDS),
            self._digest_client.stream("GET", url, _DIGEST_SECONDS, b"", headers) as response,
        ):
            if response.is_client_error:
                self._compare_clocks(response, offset)
            if response.status_code in _NO_DIGEST:
                raise OperationFailed(
                    f"the webhook offers no digest: it answers {response.status_code} to GET …{url.path}; "
                    "docs/completeness.md has what a receiver must answer"
                )
            if not response.is_success:
                raise SinkFailed(f"the webhook answers {response.status_code} to GET …{url.path}")
            body = read_whole(response, _DIGEST_BYTES)
            fields = (*response.request.headers.raw, *response.headers.raw)
            size = len(str(url)) + sum(len(name) + len(value) + 4 for name, value in fields)
            size += response.num_bytes_downloaded
        try:
            return json.loads(body), size
        except (ValueError, RecursionError) as error:
            raise SinkFailed(f"the webhook's digest of {node or 'the root'} is no JSON") from error

    def _send(self, event: _Event, data: Mapping[str, Any]) -> None:
        offset = self._offset
        now = datetime.now(UTC) - offset
        made = event.as_cloud_event(data) if self._cloud_events else event.as_standard(data, now)
        body = json.dumps(made, separators=(",", ":"))
        headers = self._signed(event.event_id, now, body)
        if self._cloud_events:
            headers["content-type"] = "application/cloudevents+json; charset=utf-8"
        posted = self._client.stream("POST", self._url, self._timeout, body.encode(), headers)
        with self._translated(self._timeout), posted as response:
            if response.is_client_error:
                self._compare_clocks(response, offset)
            _check_answer(response)  # whatever it says beyond its status is not read

    def _signed(self, event_id: str, now: datetime, body: str) -> dict[str, str]:
        return {
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signer.sign(event_id, now, body) for signer in self._signers),
        }

    @contextmanager
    def _translated(self, seconds: float) -> Iterator[None]:
        """Raise our errors for those of a request that may take so many seconds."""
        try:
            yield
        except _DeadlineExceeded as error:
            raise SinkTimedOut(f"the webhook did not answer within {seconds:g} s") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise SinkUnavailable(f"the webhook cannot be reached: {self._cause(error)}") from error
        except AnswerTooLong as error:
            raise SinkFailed(f"the webhook's answer was not read: {error}") from error
        except httpx.HTTPError as error:
            raise SinkFailed(f"the webhook did not answer: {self._cause(error)}") from error

    def _compare_clocks(self, response: httpx.Response, signed: timedelta) -> None:
        """Sign by the receiver's clock from now on, if that differs from what was `signed` with.

        What it refused may be the time then, and no message is at fault.
        """
        dated = _date(response.headers.get("date", ""))
        offset = datetime.now(UTC) - dated if dated else signed
        if abs((offset - signed).total_seconds()) > _CLOCK_SECONDS:
            self._offset = offset
            direction = "before" if offset > timedelta() else "behind"
            raise SinkUnavailable(
                f"the webhook answers {response.status_code}, and this machine's clock is "
                f"{abs(offset.total_seconds()):.0f} s {direction} its: sudo timedatectl set-ntp true"
            )


@dataclass(frozen=True, slots=True)
class _Event:
    """What is posted about; `event_id` is the same at each repetition."""

    type: str
    event_id: str
    account: str
    email_id: str
    at: datetime  # when it happened
    seq: int = 0  # of the change feed; 0: it has none

    def as_standard(self, data: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        """Return the payload that the Standard Webhooks specification recommends."""
        return {"type": self.type, "timestamp": now.isoformat(), "data": data}

    def as_cloud_event(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a CloudEvent 1.0 in structured mode; `source` and `id` together are unique."""
        made = {
            "specversion": "1.0",
            "id": self.event_id,
            "source": f"/email-ingestion/accounts/{self.account}" if self.account else "/email-ingestion",
            "type": self.type,
            "time": self.at.astimezone(UTC).isoformat(),
            "datacontenttype": "application/json",
        }
        if self.email_id:
            made["subject"] = self.email_id
        if self.seq:
            made["sequence"] = f"{self.seq:020}"  # the extension: sorts as text
        return made | {"data": data}


class _DeadlineExceeded(Exception):
    """A request took longer than it may, all in all."""


class _Client:
    """One connection that is kept, for one thread. Its requests have a time limit in all.

    The limits of httpx are for a single read or write each: a server that sends a header line now and then keeps to
    them for ever.
    """

    def __init__(self, timeout: float, connect_timeout: float, tls: ssl.SSLContext) -> None:
        self.tls = tls
        self._stream: Any = None  # of httpcore: the latest connection
        self._expired = threading.Event()
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=connect_timeout),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            headers={"user-agent": f"email-ingestion/{__version__}", "content-type": "application/json"},
            verify=tls,
        )

    @contextmanager
    def stream(
        self,
        method: str,
        url: httpx.URL,
        seconds: float,
        content: bytes = b"",
        headers: _Headers = _NO_HEADERS,
    ) -> Iterator[httpx.Response]:
        """Send a request and yield the answer, without its body. Raises _DeadlineExceeded and httpx.HTTPError."""
        expired = self._expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._shut_down()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            with self._client.stream(
                method, url, content=content, headers=headers, extensions={"trace": self._trace}
            ) as response:
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # nothing was sent
            if expired.is_set() and not isinstance(_first_cause(error), socket.gaierror):
                raise httpx.ConnectTimeout(f"no connection within {seconds:g} s") from None
            raise
        except httpx.HTTPError as error:
            if expired.is_set():
                raise _DeadlineExceeded from error
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _trace(self, event: str, details: Mapping[str, Any]) -> None:
        """Remember the connection that was made, or the same one after TLS was started on it."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._stream = details["return_value"]
            if self._expired.is_set():
                self._shut_down()

    def _shut_down(self) -> None:
        """Make a read or write that waits fail at once."""
        connection = self._stream and self._stream.get_extra_info("socket")
        if connection:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # TLS has nothing to say any more


def _first_cause(error: BaseException) -> BaseException:
    """Return the error of the system behind one of httpx, or the first error of all."""
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None and not isinstance(cause, OSError):
        cause = inner
    return cause


def _check_answer(response: httpx.Response) -> None:
    status = response.status_code
    if response.is_success:
        return
    pause = response.headers.get("retry-after")
    if status in _PAUSE_STATUSES or (status == HTTPStatus.SERVICE_UNAVAILABLE and pause):
        raise SinkThrottled(f"the webhook answers {status}", parse_retry_after(pause, datetime.now(UTC)))
    if status in _CREDENTIALS:
        raise SinkFailed(f"the webhook answers {status}: check WEBHOOK_SECRET, and what stands before it")
    if response.is_client_error:
        raise PermanentError(f"the webhook answers {status}")
    if response.is_redirect:
        raise SinkUnavailable(f"the webhook answers {status}: set WEBHOOK_URL to where it leads")
    raise SinkFailed(f"the webhook answers {status}")


def parse_retry_after(value: str | None, now: datetime) -> float:
    """Return the seconds of a Retry-After field (RFC 9110, section 10.2.3), which is a number or a date."""
    if value is None:
        return _PAUSE_SECONDS
    if value.strip().isdecimal():
        return float(value)
    until = _date(value)
    return _PAUSE_SECONDS if until is None else max(0.0, until.timestamp() - now.timestamp())


def _date(value: str) -> datetime | None:
    """Read an HTTP date (RFC 9110, section 5.6.7); None for what is none."""
    try:
        found = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if found.year > _LAST_YEAR:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _next_hop(url: httpx.URL) -> tuple[str, int]:
    """Return host and port that a request connects to: those of the environment's proxy, if there is one for it."""
    proxy = getproxies().get(url.scheme)
    return _address(httpx.URL(proxy) if proxy and not proxy_bypass(url.host) else url)


def _address(url: httpx.URL) -> tuple[str, int]:
    return url.host, url.port or (443 if url.scheme == "https" else 80)
