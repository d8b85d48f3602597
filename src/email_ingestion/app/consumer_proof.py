"""Wires the comparison of a sink with the ledger, for the command and for the workers, one of which asks for it hourly.

What a comparison found is kept in Redis, so that every worker shows it, whichever process made it. That of each hour
runs as the command, in a process of its own: it takes nothing from the mail but a processor that is free.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from email_ingestion.background import PeriodicThread
from email_ingestion.blobs import open_blobs
from email_ingestion.errors import RedisConnectionError
from email_ingestion.events import ConsumerCompared, ConsumerNotCompared, ConsumersProved, LoopFailed, Observe
from email_ingestion.settings import Settings
from email_ingestion.stream import RedisLink
from email_ingestion.stream.redis_link import text
from email_ingestion.stream.stored_values import record

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.reconcile.consumer_report import ConsumerReport
    from email_ingestion.reconcile.sink_comparison import LedgerComparison, SinkComparison
    from email_ingestion.reconcile.tree_comparison import TreeComparison

PROVABLE = ("database", "files", "maildir", "ndjson", "stream", "webhook")
WEBHOOK = "webhook"
LOOP = "proof"
LOOK_SECONDS = 60.0  # between two looks at what was proved, and whether a comparison is due
TURN_SECONDS = 900.0  # for which a comparison, or one that failed, keeps other workers from the next
Resend = Callable[[list[str]], int]


@dataclass(frozen=True, slots=True)
class ConsumerProof:
    """What the last comparison of a sink found, and when it was, in Unix seconds."""

    at: float
    missing: int
    altered: int


class ConsumerProofs:
    """The last proof of each sink, in Redis. Methods raise RedisConnectionError."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    def write(self, report: ConsumerReport) -> None:
        """Keep what a comparison found."""
        proof = ConsumerProof(time.time(), report.sum("missing"), report.sum("altered"))
        value = json.dumps(asdict(proof))
        self._link.call(lambda: self._link.client.hset(self._link.keys.proofs, report.sink, value))

    def read(self) -> dict[str, ConsumerProof]:
        """Return the last proof of each sink that was ever compared."""
        client: Any = self._link.client
        found: dict[bytes, bytes] = self._link.call(lambda: client.hgetall(self._link.keys.proofs))
        proofs = {}
        for sink, value in found.items():
            proof = record(value, {"at": (int, float), "missing": int, "altered": int})
            if proof:  # else of another release, or of anybody
                proofs[text(sink)] = ConsumerProof(proof["at"], proof["missing"], proof["altered"])
        return proofs


class ConsumerProver:
    """A thread of a worker that shows the last proofs, and has a sink compared when its last one is too old."""

    def __init__(self, settings: Settings, link: RedisLink, observe: Observe) -> None:
        self._sinks = [each for each in settings.sinks if _is_proved(each, settings)]
        self._interval = settings.reconcile_sinks_seconds
        self._link = link
        self._proofs = ConsumerProofs(link)
        self._observe = observe
        self._command: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()  # of the line above: no command begins after `close`
        self._not_before = time.monotonic() + min(LOOK_SECONDS, self._interval)
        self._thread = PeriodicThread(
            LOOP,
            min(LOOK_SECONDS, self._interval),
            self._look,
            immediate=True,
            on_error=lambda error: observe(LoopFailed(LOOP, error)),
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and a comparison that goes on."""
        self._thread.close()
        with self._lock:
            if self._command:
                self._command.kill()

    def _look(self) -> None:
        try:
            proofs = self._proofs.read()
        except RedisConnectionError:  # which others report
            self._observe(ConsumersProved(None))
            return
        if time.monotonic() >= self._not_before:
            for sink in self._sinks:
                if self._is_due(proofs.get(sink)) and self._take_turn(sink):
                    self._compare(sink)
                    proofs = self._proofs.read()
        self._observe(ConsumersProved({sink: (each.missing, each.at) for sink, each in proofs.items()}))

    def _is_due(self, proof: ConsumerProof | None) -> bool:
        return proof is None or not 0 <= time.time() - proof.at < self._interval

    def _take_turn(self, sink: str) -> bool:
        """Keep the other workers from comparing a sink now."""
        key, seconds = self._link.keys.proving(sink), max(1, int(min(TURN_SECONDS, self._interval)))
        return bool(self._link.call(lambda: self._link.client.set(key, "", nx=True, ex=seconds)))

    def _compare(self, sink: str) -> None:
        order = [sys.executable, "-m", "email_ingestion", "reconcile", "--sink", sink, "--presence", "--json"]
        started = time.monotonic()
        with self._lock:
            if self._thread.is_closed():
                return
            self._command = subprocess.Popen(
                order,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        out, complaint = self._command.communicate()
        if self._thread.is_closed():
            return
        try:
            report = json.loads(out)
            found = ConsumerCompared(sink, report["missing"], report["not_ours"], time.monotonic() - started)
        except (ValueError, KeyError, TypeError):
            reason = complaint.strip().splitlines()[-1:] or [f"the comparison ended with {self._command.returncode}"]
            self._observe(ConsumerNotCompared(sink, reason[0]))
            return
        self._observe(found)
        if report["complete"] is None:
            self._observe(ConsumerNotCompared(sink, "not everything could be looked at"))


def _is_proved(sink: str, settings: Settings) -> bool:
    """Whether a sink is compared each hour: a receiver only where it offers a digest."""
    kind, _, target = sink.partition(":")
    if kind == "ndjson":
        return target not in {"", "-"}
    return settings.webhook_digest if kind == WEBHOOK else kind in PROVABLE


@contextmanager
def open_comparison(
    settings: Settings, ledger: Ledger, sink: str, *, resend: Resend | None, presence: bool
) -> Iterator[SinkComparison | LedgerComparison | TreeComparison]:
    """Yield the comparison of a sink; with `resend` what is missing or altered is sent again.

    `presence` compares identities only, and reads no bytes. Raises OperationFailed where nobody can look into the sink.
    """
    from email_ingestion.reconcile.sink_comparison import LedgerComparison, SinkComparison  # noqa: PLC0415 - SQLAlchemy
    from email_ingestion.reconcile.sink_contents import contents_of  # noqa: PLC0415
    from email_ingestion.reconcile.tree_comparison import TreeComparison  # noqa: PLC0415
    from email_ingestion.sinks.webhook import open_sink as open_webhook  # noqa: PLC0415
    from email_ingestion.stream.sink import open_sink  # noqa: PLC0415

    blobs = open_blobs(settings.blob_url)
    if sink == settings.sinks[0]:
        yield LedgerComparison(ledger, blobs, presence=presence)
    elif sink == WEBHOOK:
        with closing(open_webhook(settings)) as webhook:
            yield TreeComparison(ledger, sink, webhook.get_digest, resend)
    else:
        with ExitStack() as cleanup:
            contents = contents_of(
                sink, lambda key: cleanup.enter_context(closing(open_sink(settings, key))), presence=presence
            )
            yield SinkComparison(ledger, blobs, sink, contents, resend)
