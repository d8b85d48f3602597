"""`email-ingestion pending`: messages a worker has taken and not finished; an operator may set them free or aside."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any

import typer

from email_ingestion.cli.common import audited, current_user, open_redis, parse_duration, parse_entry_ids
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.stream.stuck import PAGE, Stuck, Stucks

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Entries by id.", show_default=False)]
ConsumerOption = Annotated[str, typer.Option("--consumer", help="Only this worker's; `consumers list` names it.")]
IdleOption = Annotated[str, typer.Option("--idle", metavar="SPAN", help="Only those untouched for 90s, 30m, 12h.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every pending entry.")]

pending = typer.Typer(help="See messages a worker has taken and not finished, set them free or aside.")


@pending.command("list")
def list_pending(
    consumer: ConsumerOption = "",
    idle: IdleOption = "0s",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most entries shown.")] = 50,
    as_json: Json = False,
) -> int:
    """List pending entries, oldest first. Exit code 0 when there are some, 1 when there are none.

    Examples:
      email-ingestion pending list
      email-ingestion pending list --idle 5m --json
    """
    seconds = parse_duration(idle, "--idle").total_seconds()
    _, link = open_redis("pending")
    found = list(islice(Stucks(link).entries(consumer=consumer, idle_seconds=seconds), limit + 1))
    show([_row(each) for each in found[:limit]], as_json=as_json)
    if len(found) > limit:
        say(f"these are the first {limit}; --limit shows more")
    return _answer(found)


@pending.command()
def release(
    ids: Ids = None,
    consumer: ConsumerOption = "",
    idle: IdleOption = "0s",
    everything: AllOption = False,
    as_json: Json = False,
) -> int:
    """Let any worker take entries at once, without waiting for a back-off or a dead worker's lease.

    Examples:
      email-ingestion pending release --consumer mail-1-worker-2
      email-ingestion pending release 1767225600000-0
    """
    settings, link = open_redis("pending")
    stucks = Stucks(link)
    with audited(settings.log_dir, "pending release", _said(ids, consumer, idle)) as outcome:
        chosen = list(_chosen(stucks, ids, consumer, idle, everything=everything))
        outcome["released"] = sum(stucks.let_go(chosen[start : start + PAGE]) for start in range(0, len(chosen), PAGE))
    show([{"matched": len(chosen), **outcome}], as_json=as_json)
    return _answer(chosen)


@pending.command("to-dlq")
def to_dlq(
    ids: Ids = None,
    consumer: ConsumerOption = "",
    idle: IdleOption = "0s",
    everything: AllOption = False,
    as_json: Json = False,
) -> int:
    """Make entries dead letters with the reason `operator`; `dlq replay` puts them back.

    Examples:
      email-ingestion pending to-dlq 1767225600000-0
      email-ingestion pending to-dlq --idle 2h --consumer mail-1-worker-2
    """
    rows: list[dict[str, Any]] = []
    settings, link = open_redis("pending")
    stucks = Stucks(link)
    with audited(settings.log_dir, "pending to-dlq", _said(ids, consumer, idle)) as outcome:
        outcome["buried"] = 0
        for each in _chosen(stucks, ids, consumer, idle, everything=everything):
            letter = stucks.bury(each, f"{socket.gethostname()}-{current_user()}")
            rows.append({"id": each.id, "email_id": each.email_id, "letter": letter})
            outcome["buried"] += letter is not None
    show(rows, as_json=as_json)
    return _answer([row for row in rows if row["letter"]])


def _chosen(
    stucks: Stucks, ids: Sequence[str] | None, consumer: str, idle: str, *, everything: bool
) -> Iterator[Stuck]:
    seconds = parse_duration(idle, "--idle").total_seconds()
    narrowed = bool(ids or consumer or seconds)
    if everything is narrowed:
        raise typer.BadParameter("name entries by id, --consumer or --idle, or else say --all")
    wanted = parse_entry_ids(ids or (), "an entry")
    found = stucks.entries(consumer=consumer, idle_seconds=seconds)
    return (each for each in found if not wanted or each.id in wanted)


def _said(ids: Sequence[str] | None, consumer: str, idle: str) -> dict[str, Any]:
    return {"filter": {"ids": list(ids or ()), "consumer": consumer, "idle": idle}}


def _row(stuck: Stuck) -> dict[str, Any]:
    return {
        "id": stuck.id,
        "email_id": stuck.email_id,
        "consumer": stuck.consumer,
        "age_seconds": round(stuck.age_seconds, 3),
        "idle_seconds": round(stuck.idle_seconds, 3),
        "deliveries": stuck.deliveries,
        "bytes": None if stuck.wire_bytes < 0 else stuck.wire_bytes,
    }


def _answer(found: Sequence[object]) -> int:
    if found:
        return OK
    say("nothing like that is pending")
    return NEGATIVE
