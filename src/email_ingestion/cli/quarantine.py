"""`quarantine`: messages that a mail server lists but does not send as they are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from email_ingestion.cli.common import audited, current_user, open_redis, pick_accounts
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.errors import OperationFailed
from email_ingestion.ops.redaction import redact
from email_ingestion.ops.status_json import iso_timestamp
from email_ingestion.settings import Account
from email_ingestion.stream import Quarantine, QuarantinedMessage, RedisLink, quarantined_mailboxes

AccountOption = Annotated[str, typer.Option("--account", help="Only this account, by its configured name.")]
MailboxOption = Annotated[str, typer.Option("--mailbox", help="Only this mailbox; `list` names them.")]
Uids = Annotated[list[int] | None, typer.Argument(metavar="[UID]...", min=1, help="Messages by their UID.")]

quarantine = typer.Typer(help="See the messages that a mail server does not send, ask again, or accept their loss.")


@dataclass(frozen=True, slots=True)
class _Entry:
    account: str
    mailbox: str
    quarantine: Quarantine
    message: QuarantinedMessage


@quarantine.command("list")
def list_quarantined(account: AccountOption = "", mailbox: MailboxOption = "", as_json: Json = False) -> int:
    """List them with the reason and when each is asked for again. Exit code 0 when there are some, 1 when not.

    The producer asks for each again by itself, ever more rarely; `accepted` are those it does not ask for any more.

    Examples:
      email-ingestion quarantine list
      email-ingestion quarantine list --account work --json
    """
    settings, link = open_redis("quarantine")
    found = list(_held(link, pick_accounts(settings, account), mailbox))
    show([_row(each, as_json=as_json) for each in found], as_json=as_json)
    if not found:
        say("nothing is in quarantine")
    return OK if found else NEGATIVE


@quarantine.command("retry")
def retry(
    uids: Uids = None,
    everything: Annotated[bool, typer.Option("--all", help="Every message in quarantine.")] = False,
    account: AccountOption = "",
    mailbox: MailboxOption = "",
    as_json: Json = False,
) -> int:
    """Let the producer ask for messages again now, also for accepted ones. Exit code 1 when one is not there.

    A running producer does so within seconds; what does not come then stays in quarantine.

    Examples:
      email-ingestion quarantine retry 4711
      email-ingestion quarantine retry --all --account work
    """
    if bool(uids) == everything:
        raise typer.BadParameter("name messages by UID, or all of them with --all")
    settings, link = open_redis("quarantine")
    found = list(_held(link, pick_accounts(settings, account), mailbox))
    picked = found if everything else _pick(found, uids or [])
    details = {"messages": [_name(each) for each in picked]}
    with audited(settings.log_dir, "quarantine retry", details):
        for each in picked:
            each.quarantine.retry([each.message.uid])
    return _answer(picked, uids or [], "is asked for again", as_json=as_json)


@quarantine.command("accept")
def accept(
    uids: Uids = None,
    reason: Annotated[str, typer.Option("--reason", help="Why nobody needs it; for the audit log.")] = "",
    account: AccountOption = "",
    mailbox: MailboxOption = "",
    as_json: Json = False,
) -> int:
    """Accept that messages do not come. Exit code 1 when one is not in quarantine.

    They are not asked for any more, degrade nothing and raise no alert; `reconcile` counts them as accepted. The
    reason stands in the audit log. `retry` takes it back.

    Examples:
      email-ingestion quarantine accept 4711 --reason "damaged on the server, sent again by its author"
      email-ingestion quarantine accept 12 13 --account work --reason "spam"
    """
    if not uids:
        raise typer.BadParameter("name the messages by UID; `email-ingestion quarantine list` has them")
    if not reason.strip():
        raise typer.BadParameter("say why with --reason: whoever looks for the message finds it in the audit log")
    settings, link = open_redis("quarantine")
    picked = _pick(list(_held(link, pick_accounts(settings, account), mailbox)), uids)
    details = {"messages": [_name(each) for each in picked], "reason": reason}
    with audited(settings.log_dir, "quarantine accept", details):
        for each in picked:
            each.quarantine.accept(each.message.uid, reason, current_user())
    return _answer(picked, uids, "is accepted as lost", as_json=as_json)


def _held(link: RedisLink, accounts: Sequence[Account], mailbox: str) -> Iterator[_Entry]:
    for account in accounts:
        for name, found in quarantined_mailboxes(link, account.name):
            if not mailbox or name == mailbox:
                for message in found.messages():
                    yield _Entry(account.name, name, found, message)


def _pick(found: Sequence[_Entry], uids: Sequence[int]) -> list[_Entry]:
    """Return the messages with these UIDs. Raises OperationFailed for a UID that several mailboxes have."""
    picked = [each for each in found if each.message.uid in uids]
    for uid in uids:
        places = [f"{each.account} {each.mailbox}" for each in picked if each.message.uid == uid]
        if len(places) > 1:
            raise OperationFailed(f"several have a UID {uid}: {', '.join(places)}; add --account or --mailbox")
    return picked


def _answer(picked: Sequence[_Entry], uids: Sequence[int], done: str, *, as_json: bool) -> int:
    unknown = sorted(set(uids) - {each.message.uid for each in picked})
    if as_json:
        show(
            [{"account": each.account, "mailbox": each.mailbox, "uid": each.message.uid} for each in picked],
            as_json=True,
        )
    else:
        for each in picked:
            typer.echo(f"{_name(each)} {done}")
    for uid in unknown:
        say(f"UID {uid} is not in quarantine")
    return NEGATIVE if unknown or not picked else OK


def _name(each: _Entry) -> str:
    return f"{each.account}, {each.mailbox}: UID {each.message.uid}"


def _row(each: _Entry, *, as_json: bool) -> dict[str, Any]:
    message, accepted = each.message, each.message.accepted
    row = {
        "account": each.account,
        "mailbox": each.mailbox,
        "uid": message.uid,
        "tries": message.tries,
        "since": iso_timestamp(message.since),
        "next_try_seconds": None if accepted else round(max(0.0, message.due - time.time())),
        "accepted": f"{accepted.by}: {accepted.reason}" if accepted else None,
        "reason": redact(message.reason),
    }
    return row if as_json else {name: value for name, value in row.items() if name != "since"}
