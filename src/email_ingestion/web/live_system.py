"""What the web process knows of the others: their own answers, Redis, the database, and the samples of the last hour.

It asks every few seconds, in threads of its own, whether or not somebody looks at a page; nobody waits for it.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from email_ingestion.background import PeriodicThread
from email_ingestion.fleet.managed_processes import ManagedProcess, list_processes, read_answer, read_headers
from email_ingestion.ledger.maintenance import describe_ledger
from email_ingestion.ops.logs import logger
from email_ingestion.ops.metric_factory import PREFIX
from email_ingestion.ops.peers import address_proof
from email_ingestion.ops.redaction import describe_error
from email_ingestion.settings import Settings, is_loopback
from email_ingestion.stream import Gauges, RedisLink, open_link, read_gauges
from email_ingestion.web.readings import Reading, Source, wait_for

SAMPLE_SECONDS = 5.0
HISTORY_SECONDS = 3600.0
PATIENCE_SECONDS = 3.0  # after which Redis and the database are not known any more, though they were well a moment ago
PAGE_WAIT_SECONDS = 0.6  # for what was never looked at; the rest of a second is for the page
METRICS_SECONDS = 2.0
SAMPLED = ("delivered_until_timestamp_seconds", "sink_waiting_messages", "sink_oldest_timestamp_seconds")
_LINE = re.compile(rf"^{PREFIX}_(?P<name>\w+)(?:\{{(?P<labels>[^}}]*)\}})? (?P<value>\S+)$", re.MULTILINE)
MAX_ELSEWHERE = 64  # processes of other machines
# What the pages rely on in an answer of `/status`.
_BODY = {
    **dict.fromkeys(("component", "instance", "status"), str),
    **dict.fromkeys(("circuit_breakers", "checks", "accounts"), list),
    "pid": int,
    "statistics": dict,
}
_ADDRESS = re.compile(r"http://(?P<host>[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}", re.ASCII)
_NUMERIC = re.compile(r"(?:^|\.)(?:0x[0-9a-f]*|[0-9]+)\.?$", re.ASCII | re.IGNORECASE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class LiveProcess:
    """A process that left a PID file or announces itself; `body` is its `/status`, None without an answer.

    `metrics` are some of its metrics: by name, then by the value of their only label.
    """

    stem: str
    pid: int | None
    body: dict[str, Any] | None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def component(self) -> str:
        """Producer or worker."""
        return str(self.body["component"]) if self.body else self.stem.partition("-")[0]


@dataclass(frozen=True, slots=True)
class FlowSample:
    """The numbers of one moment, None where nothing is known; `fetched` and `delivered` are rates a minute."""

    at: float
    queue: int | None
    dead: int | None
    fetched: float | None
    delivered: float | None


@dataclass(frozen=True, slots=True)
class SystemReading:
    """Everything that is known now."""

    at: float
    processes: Reading[list[LiveProcess]]
    redis: Reading[Gauges]
    database: Reading[str]
    samples: Sequence[FlowSample]


class LiveSystem:
    """Asks the others, and remembers an hour of what they said."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._link: RedisLink | None = None
        self.redis = Source("Redis", self._read_redis, SAMPLE_SECONDS / 2, patience=PATIENCE_SECONDS)
        self.processes = Source("a process of this machine", self._read_processes, SAMPLE_SECONDS / 2)
        self.database = Source(
            "the database",
            lambda: describe_ledger(settings.database_url, counted=False),
            SAMPLE_SECONDS / 2,
            patience=PATIENCE_SECONDS,
        )
        self._samples: deque[FlowSample] = deque(maxlen=int(HISTORY_SECONDS / SAMPLE_SECONDS))
        self._totals: dict[str, tuple[float, dict[str, int]]] = {}
        self._thread = PeriodicThread("web-sampler", SAMPLE_SECONDS, self._sample, immediate=True, on_error=_report)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._thread.close()

    def read(self, wait: float = PAGE_WAIT_SECONDS) -> SystemReading:
        """Return what is known, after at most `wait` seconds."""
        wait_for([self.processes, self.redis, self.database], wait)  # type: ignore[list-item]  # it reads none of them
        return SystemReading(
            time.time(), self.processes.get(), self.redis.get(), self.database.get(), tuple(self._samples)
        )

    @property
    def link(self) -> RedisLink:
        """The link to Redis that the pages share. Raises ConfigurationError for an address that is none."""
        if self._link is None:
            self._link = open_link(self._settings.redis_address, "email-ingestion-web")
        return self._link

    def _read_redis(self) -> Gauges:
        return read_gauges(self.link)

    def _read_processes(self) -> list[LiveProcess]:
        found = {each.stem: _ask(each) for each in list_processes(self._settings)}
        gauges = self.redis.get().value
        headers = read_headers(self._settings)
        elsewhere = [each for each in gauges.processes if _is_elsewhere(each)] if gauges else []
        for each in elsewhere[:MAX_ELSEWHERE]:  # on other machines and in containers
            name = f"{each.get('stem') or each['instance']} on {each['host']}"
            given = headers if _is_proven(each, headers) else {}
            found[name] = _ask(ManagedProcess(name, each.get("pid"), each["ops_url"], headers=given))
        return list(found.values())

    def _sample(self) -> None:
        reading = self.read(SAMPLE_SECONDS / 2)
        gauges, processes = reading.redis.value, reading.processes.value
        self._samples.append(
            FlowSample(
                reading.at,
                gauges.depth if gauges else None,
                gauges.dlq_depth if gauges else None,
                self._rate("producer", "produced", reading.at, processes),
                self._rate("worker", "processed", reading.at, processes),
            )
        )

    def _rate(self, component: str, name: str, at: float, processes: list[LiveProcess] | None) -> float | None:
        """Return how many a minute since the last sample; None without an answer then or now."""
        bodies = [each.body for each in processes or () if each.body and each.component == component]
        if not bodies:
            self._totals.pop(component, None)
            return None
        now = {f"{body['instance']} {body['pid']}": int(body["statistics"][name] or 0) for body in bodies}
        last_at, last = self._totals.get(component, (at, now))
        self._totals[component] = (at, now)
        if at <= last_at:
            return None
        grown = sum(max(0, count - last.get(instance, 0)) for instance, count in now.items())
        return 60.0 * grown / (at - last_at)


def _is_elsewhere(presence: Mapping[str, Any]) -> bool:
    """Tell whether a process is on another machine.

    Its address must be one and nothing more: whoever can write it into Redis chooses neither a path nor a user, nor a
    place that only this machine sees.
    """
    address = _ADDRESS.fullmatch(presence.get("ops_url") or "")
    if not address or presence.get("host") in {None, socket.gethostname()}:
        return False
    host = address["host"].strip("[]")
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return not (is_loopback(host) or _NUMERIC.search(host))  # 127.1 and 0x7f000001 are addresses to the resolver
    plain = getattr(found, "ipv4_mapped", None) or found
    return not (plain.is_loopback or plain.is_link_local or plain.is_multicast or plain.is_unspecified)


def _is_proven(presence: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    token = headers.get("Authorization", "").removeprefix("Bearer ")
    proof = presence.get("ops_proof") or ""
    return bool(token) and hmac.compare_digest(address_proof(token, presence["ops_url"]).encode(), proof.encode())


def _ask(process: ManagedProcess) -> LiveProcess:
    body = process.status()
    if body is not None and not all(isinstance(body.get(name), kind) for name, kind in _BODY.items()):
        body = None  # whoever answers there is none of ours, or wants the token
    metrics = _read_metrics(process) if body else {}
    return LiveProcess(process.stem, process.pid, body, metrics)


def _read_metrics(process: ManagedProcess) -> dict[str, dict[str, float]]:
    import httpx  # noqa: PLC0415 - slow to load

    try:
        url = f"{process.ops_url}/metrics"
        text = read_answer(url, METRICS_SECONDS, process.headers).decode("utf-8", "replace")
    except (httpx.HTTPError, ValueError):
        return {}
    found: dict[str, dict[str, float]] = {}
    for line in _LINE.finditer(text):
        if line["name"] in SAMPLED:
            labels = _LABEL.findall(line["labels"] or "")
            with suppress(ValueError):
                found.setdefault(line["name"], {})[labels[0][1] if labels else ""] = float(line["value"])
    return found


def _report(error: Exception) -> None:
    logger("web").warning("web_sample_failed", error_type=type(error).__name__, message=describe_error(error))
