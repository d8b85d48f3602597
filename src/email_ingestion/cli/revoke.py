"""`email-ingestion revoke`: take one message away from the worker that handles it, into the dead letters."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from email_ingestion.cli.common import audited, current_user, open_redis, wait_until
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.fleet.admin_client import Clerk, Live, live
from email_ingestion.settings import Settings
from email_ingestion.stream import RedisLink
from email_ingestion.stream.census import Census
from email_ingestion.stream.stuck import Stuck, Stucks

LET_GO_SECONDS = 10.0  # how long a worker may take to bury what it was told to


def revoke(
    email_id: Annotated[str, typer.Argument(metavar="EMAIL_ID", help="As the log names it.", show_default=False)],
    as_json: Json = False,
) -> int:
    """End the handling of a message and make it a dead letter with the reason `operator`; `dlq replay` puts it back.

    A worker of this machine that has it ends its parser; a message in the hands of a slow sink, of a worker elsewhere
    or of a dead one is taken away in Redis. Exit code 1 when nobody has it.

    Examples:
      email-ingestion revoke default:gm:1850000000000000001
    """
    said = {"email_id": email_id}
    settings, link = open_redis("revoke")
    with audited(settings.log_dir, "revoke", said) as outcome:
        outcome["worker"] = _told(settings, email_id)
        buried = _letter(link, email_id) if outcome["worker"] else None
        outcome["letter"] = buried or _taken(link, email_id)
    show([{"email_id": email_id, **outcome}], as_json=as_json)
    if outcome["letter"] is None:
        say("no worker has this message: it waits, or is delivered already")
        return NEGATIVE
    return OK


def _told(settings: Settings, email_id: str) -> str | None:
    """The local worker that had the message and was told to let it go."""
    clerk = None
    for process in live(settings):
        if process.component == "worker":
            clerk = clerk or Clerk(settings, current_user())
            if _has(clerk, process, email_id):
                return process.stem
    return None


def _has(clerk: Clerk, process: Live, email_id: str) -> bool:
    return bool(clerk.order(process, "revoke", {"email_id": email_id})["revoked"])


def _letter(link: RedisLink, email_id: str) -> str | None:
    """The dead letter its worker makes of it; None when it does not in time."""
    if not wait_until(lambda: _stuck(link, email_id) is None, LET_GO_SECONDS):
        return None
    keys = link.keys_for(email_id.partition(":")[0])  # it begins with the account
    dead = (each for page in Census(link, keys).dead() for each in page.entries)
    return next((keys.format_entry_id(each.id) for each in dead if each.email_id == email_id), None)


def _taken(link: RedisLink, email_id: str) -> str | None:
    stuck = _stuck(link, email_id)
    return Stucks(link).bury(stuck, f"{socket.gethostname()}-{current_user()}") if stuck else None


def _stuck(link: RedisLink, email_id: str) -> Stuck | None:
    return next((each for each in Stucks(link).entries() if each.email_id == email_id), None)
