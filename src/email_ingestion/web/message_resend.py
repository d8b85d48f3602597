"""Owes one message to a sink again, whatever the routes say; the workers deliver it. For the pages and for the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from email_ingestion.ops.audit_log import audited_action
from email_ingestion.web.context import WebContext
from email_ingestion.web.process_orders import OrderGiver

if TYPE_CHECKING:
    from email_ingestion.resend import ResendSummary


def resend_message(web: WebContext, giver: OrderGiver, email_id: str, sink: str) -> ResendSummary:
    """Return what was found; raises the errors of ledger and blob store."""
    from email_ingestion.ledger.resends import ResendChoice  # noqa: PLC0415 - with it comes SQLAlchemy
    from email_ingestion.resend import Resender  # noqa: PLC0415
    from email_ingestion.routing import Router  # noqa: PLC0415

    settings, ledger = web.settings, web.access.ledger
    router_of_mail = Router(settings.routes, settings.sinks[1:])
    made = Resender(ledger, web.access.blobs, router_of_mail, sink, ledger.resends.now())
    record = giver.audit_record("resend", sink=sink, asked={"id": [email_id]}, emails=[email_id])
    with audited_action(settings.log_dir, record) as outcome:
        for _ in made.run(ResendChoice(email_ids=(email_id,))):
            pass
        outcome |= {"owed": made.summary.owed, "failed": len(made.summary.failed)}
    return made.summary
