"""Wires the comparison of a sink with the ledger, for the command and for the workers' look once an hour.

What a comparison found is kept in Redis, so that every worker shows it, whichever process made it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from email_ingestion.blobs import open_blobs
from email_ingestion.settings import Settings
from email_ingestion.stream import RedisLink

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.reconcile.consumer_report import ConsumerReport
    from email_ingestion.reconcile.sink_comparison import LedgerComparison, SinkComparison
    from email_ingestion.reconcile.tree_comparison import TreeComparison

PROVABLE = ("database", "files", "maildir", "ndjson", "stream", "webhook")
WEBHOOK = "webhook"
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
            try:
                proofs[sink.decode()] = ConsumerProof(**json.loads(value))
            except (TypeError, ValueError):  # of another release
                continue
        return proofs


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
