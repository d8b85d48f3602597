"""Proves that every message of a mailbox is delivered, queued or a dead letter, or names the gap and fills it.

    what the server lists, up to the cursor = ledger + stream + dead letters + what the rules leave out

The cursor is read first; then `producer.known_mail` asks the stream, the dead letters and the ledger in an order in
which nothing can slip through.
"""

from email_ingestion.reconcile.comparison import ReconcileReport
from email_ingestion.reconcile.reconciler import Reconciler

__all__ = ["ReconcileReport", "Reconciler"]
