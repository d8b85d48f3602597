"""Proves that every message of a mailbox is delivered, queued or a dead letter, or names the gap and fills it.

    what the server lists, up to the cursor = ledger + stream + dead letters + what the rules leave out

What is true is asked for in an order in which nothing can slip through: first the cursor, then the stream, then the
dead letters, then what came into the stream meanwhile, and the ledger last. Mail only moves along that line, or from
the dead letters to the end of the stream.
"""

from email_ingestion.reconcile.accounted import Accounted
from email_ingestion.reconcile.audit import Audit
from email_ingestion.reconcile.report import Report
from email_ingestion.reconcile.underway import Underway

__all__ = ["Accounted", "Audit", "Report", "Underway"]
