"""`pending`, `consumers` and `revoke`: messages that a worker has taken and not finished, and workers that are gone."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from email_ingestion.app.runner import identify
from email_ingestion.cli.common import audited, current_user, open_redis, parse_duration, wait_until
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.id_arguments import pick_entry_ids, pick_pending
from email_ingestion.cli.output import Json, filled_columns, printable, say, show, table
from email_ingestion.errors import OperationFailed, RedisConnectionError, SinkUnavailable
from email_ingestion.fleet.admin_client import AdminClient, RunningProcess, running_processes
from email_ingestion.fleet.managed_processes import list_processes
from email_ingestion.ops.peers import peers
from email_ingestion.ops.prometheus_targets import remove_target
from email_ingestion.settings import Settings
from email_ingestion.stream import DeadLetterQueue, RedisLink, forget_process, read_gauges, read_presences
from email_ingestion.stream.dead_letters import dead_letter_fields
from email_ingestion.stream.entry_scan import EntryScanner
from email_ingestion.stream.keys import NEWER_RELEASE
from email_ingestion.stream.pending import PAGE, ConsumerInfo, PendingEntries, PendingEntry

if TYPE_CHECKING:
    from email_ingestion.ledger.outbox import StartedDelivery
    from email_ingestion.ledger.store import Ledger

Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID]...", help="Entries by id or its beginning.", show_default=False),
]
ConsumerOption = Annotated[str, typer.Option("--consumer", help="Only this worker's; `consumers list` names it.")]
IdleOption = Annotated[str, typer.Option("--idle", metavar="SPAN", help="Only those untouched for 90s, 30m, 12h.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every pending entry.")]

REVOKE_SECONDS = 10.0  # how long a worker may take to make a dead letter of a revoked message
TAKE_OVER_SECONDS = 20.0  # how long the living workers may take to claim the released entries

consumers = typer.Typer(help="See the workers Redis knows by name, and remove those that are gone.")
pending = typer.Typer(help="See messages a worker has taken and not finished, set them free or aside.")


@pending.command("list")
def list_pending(
    consumer: ConsumerOption = "",
    idle: IdleOption = "0s",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most entries shown.")] = 50,
    as_json: Json = False,
) -> int:
    """List what workers have and have not finished, oldest first. Exit code 0 when there is something, 1 when not.

    That is entries of the stream and, with a sink instead of an id, deliveries to the sinks beside the database. One
    without a consumer waits for another attempt; `since` says when a call of the sink began that has lasted a second.

    Examples:
      email-ingestion pending list
      email-ingestion pending list --idle 5m --json
    """
    seconds = parse_duration(idle, "--idle").total_seconds()
    settings, link = open_redis("pending")
    entries = islice(PendingEntries(link).entries(consumer=consumer, idle_seconds=seconds), limit + 1)
    found = [_row(each) for each in entries]
    unavailable: SinkUnavailable | None = None
    try:
        with _ledger(settings) as ledger:
            started = ledger.outbox.started() if ledger else []
        rows = _delivery_rows(started, read_presences(link))
        found += [
            row
            for row in rows
            if (not consumer or row["consumer"] == consumer) and (not seconds or (row["idle_seconds"] or 0) >= seconds)
        ]
    except SinkUnavailable as error:
        unavailable = error
    if not found:
        _refuse_unknown_consumer(link, consumer)
    found.sort(key=lambda row: -float(row["age_seconds"]))
    show(found[:limit], as_json=as_json, make_table=lambda rows: table(filled_columns(rows)))
    if len(found) > limit:
        say(f"these are the first {limit}; --limit shows more")
    if unavailable:
        raise OperationFailed(f"what the sinks have is not known: {unavailable}") from unavailable
    return _answer(found)


@contextmanager
def _ledger(settings: Settings) -> Iterator[Ledger | None]:
    """Yield the ledger; None where the database is the only sink, so that nothing waits in an outbox."""
    if not settings.sinks[1:]:
        yield None
        return
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    with closing(open_ledger(settings.database_url)) as ledger:
        yield ledger


def _delivery_rows(
    started: Sequence[StartedDelivery], presences: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    now = time.time()
    calls = {
        (presence["instance"], call["sink"], call["email_id"]): float(call["since"])
        for presence in presences
        for call in presence.get("sink_calls") or ()
    }
    for delivery in started:
        since = calls.get((delivery.holder, delivery.sink, delivery.email_id))
        yield {
            "id": None,
            "email_id": delivery.email_id,
            "consumer": delivery.holder,
            "age_seconds": round(now - delivery.owed_since.timestamp(), 3),
            "idle_seconds": None if since is None else round(now - since, 3),
            "deliveries": delivery.attempts,
            "bytes": None,
            "sink": delivery.sink,
            "since": None if since is None else datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds"),
        }


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
    _refuse_unknown_consumer(link, consumer)
    entries = PendingEntries(link)
    with audited(settings.log_dir, "pending release", _filter_record(ids, consumer, idle)) as outcome:
        chosen = list(_select(entries, ids, consumer, idle, everything=everything))
        outcome["released"] = sum(
            entries.release(chosen[start : start + PAGE]) for start in range(0, len(chosen), PAGE)
        )
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
    _refuse_unknown_consumer(link, consumer)
    entries = PendingEntries(link)
    with audited(settings.log_dir, "pending to-dlq", _filter_record(ids, consumer, idle)) as outcome:
        outcome["buried"] = 0
        for each in _select(entries, ids, consumer, idle, everything=everything):
            dead_letter_id = entries.dead_letter(each, f"{socket.gethostname()}-{current_user()}")
            rows.append({"id": each.id, "email_id": each.email_id, "letter": dead_letter_id})
            outcome["buried"] += dead_letter_id is not None
    show(rows, as_json=as_json)
    return _answer([row for row in rows if row["letter"]])


def _refuse_unknown_consumer(link: RedisLink, name: str) -> None:
    """Raise BadParameter for a worker that Redis knows neither as a consumer nor by its heartbeat, past or present."""
    if not name:
        return
    gauges = read_gauges(link)
    names = {each.name for each in PendingEntries(link).consumers()}
    names |= {each["instance"] for each in (*gauges.processes, *gauges.lost) if each["component"] == "worker"}
    if name not in names:
        known = ", ".join(sorted(names)) or "none"
        raise typer.BadParameter(f"Redis knows no worker {printable(name)!r}; it knows {known}")


def _select(
    entries: PendingEntries, ids: Sequence[str] | None, consumer: str, idle: str, *, everything: bool
) -> Iterator[PendingEntry]:
    seconds = parse_duration(idle, "--idle").total_seconds()
    narrowed = bool(ids or consumer or seconds)
    if everything is narrowed:
        raise typer.BadParameter("name entries by id, --consumer or --idle, or else say --all")
    wanted = pick_entry_ids(ids or (), "an entry", lambda: (each.id for each in entries.entries()))
    found = entries.entries(consumer=consumer, idle_seconds=seconds)
    return (each for each in found if not wanted or each.id in wanted)


def _filter_record(ids: Sequence[str] | None, consumer: str, idle: str) -> dict[str, Any]:
    return {"filter": {"ids": list(ids or ()), "consumer": consumer, "idle": idle}}


def _row(entry: PendingEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "email_id": entry.email_id,
        "consumer": entry.consumer,
        "age_seconds": round(entry.age_seconds, 3),
        "idle_seconds": round(entry.idle_seconds, 3),
        "deliveries": entry.deliveries,
        "bytes": None if entry.wire_bytes < 0 else entry.wire_bytes,
        "sink": None,
        "since": None,
    }


def _answer(found: Sequence[object]) -> int:
    if found:
        return OK
    say("nothing like that is pending")
    return NEGATIVE


@consumers.command("list")
def list_consumers(as_json: Json = False) -> int:
    """List the consumers of the group. Exit code 0 when there are some, 1 when there are none.

    Examples:
      email-ingestion consumers list
    """
    settings, link = open_redis("consumers")
    found = _consumers(settings, link)
    show([asdict(each) for each in found], as_json=as_json)
    if not found:
        say("no worker has taken anything from the stream yet; `email-ingestion status` shows which run")
    return OK if found else NEGATIVE


@consumers.command()
def prune(
    release: Annotated[
        bool, typer.Option("--release", help="First let living workers take over what the gone ones left pending.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Remove consumers whose process is gone, but never one with something pending. Exit code 1 when one is left.

    A worker whose consumer is removed no longer counts as one that should run.

    Examples:
      email-ingestion consumers prune
      email-ingestion consumers prune --release
    """
    settings, link = open_redis("consumers")
    entries = PendingEntries(link)
    with audited(settings.log_dir, "consumers prune", {"release": release}) as outcome:
        if release:
            _hand_over(settings, link, entries)
        pruned = [each.name for each in _gone(settings, link) if each.pending == 0 and entries.prune(each.name)]
        left = [each.name for each in _gone(settings, link)]
        _forget_workers(settings, link, {each.name for each in entries.consumers()})
        outcome |= {"pruned": pruned, "left": left}
    show(
        [{"consumer": name, "pruned": True} for name in pruned]
        + [{"consumer": name, "pruned": False} for name in left],
        as_json=as_json,
    )
    if not pruned and not left:
        say("every consumer has a living worker: there is none to remove")
    if left:
        say("what is left has entries pending: a worker that lives takes them over; --release lets it at once")
    return NEGATIVE if left else OK


def _forget_workers(settings: Settings, link: RedisLink, kept: set[str]) -> None:
    """Let dead workers but those of `kept` consumers no longer count as processes that should run."""
    for record in read_gauges(link).lost:
        if record["component"] == "worker" and record["instance"] not in kept:
            forget_process(link, record["instance"])
    for process in list_processes(settings):
        number = int(process.stem.rpartition("-")[2]) if "-" in process.stem else 1
        if process.stem.startswith("worker") and not process.pid and identify("worker", number).instance not in kept:
            (settings.pid_dir / f"{process.stem}.pid").unlink(missing_ok=True)
            remove_target(process.stem)


def _consumers(settings: Settings, link: RedisLink) -> list[ConsumerInfo]:
    """Return the consumers; one that died here is not alive, though its heartbeat lasts for some seconds."""
    dead = {peer.instance for peer in peers(None, read_presences(link), settings.pid_dir) if peer.alive is False}
    return [replace(each, alive=each.alive and each.name not in dead) for each in PendingEntries(link).consumers()]


def _gone(settings: Settings, link: RedisLink) -> list[ConsumerInfo]:
    return [each for each in _consumers(settings, link) if not each.alive and not _waits_for_upgrade(each)]


def _waits_for_upgrade(consumer: ConsumerInfo) -> bool:
    return consumer.name == NEWER_RELEASE and consumer.pending > 0


def _hand_over(settings: Settings, link: RedisLink, entries: PendingEntries) -> None:
    for each in _gone(settings, link):
        entries.release(list(entries.entries(consumer=each.name)))
    wait_until(lambda: not any(each.pending for each in _gone(settings, link)), TAKE_OVER_SECONDS)


def revoke(
    email_id: Annotated[
        str,
        typer.Argument(
            metavar="EMAIL_ID",
            help="As the log names it, or its beginning.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
) -> int:
    """End the handling of a message and make it a dead letter with the reason `operator`; `dlq replay` puts it back.

    A worker of this machine that has it ends its parser, or the Python function it has been handed to; a message in the
    hands of a slow sink, of a worker elsewhere or of a dead one is taken away in Redis and in the database. So is a
    delivery to a sink that waits for another attempt: the letter names the sink. Exit code 1 when nobody has it.

    Examples:
      email-ingestion revoke default:gm:1850000000000000001
    """
    settings, link = open_redis("revoke")
    with ExitStack() as cleanup:
        ledger, unavailable = None, None
        try:
            ledger = cleanup.enter_context(_ledger(settings))
        except SinkUnavailable as error:  # what hangs in a parser can be revoked all the same
            unavailable = error
        with suppress(RedisConnectionError):  # a worker of this machine has it all the same
            email_id = pick_pending(PendingEntries(link), ledger, email_id) or email_id
        with audited(settings.log_dir, "revoke", {"email_id": email_id}) as outcome:
            outcome["worker"] = _revoke_locally(settings, email_id)
            outcome["sinks"] = [each.sink for each in ledger.outbox.started(email_id)] if ledger else []
            dead_letter_id = _wait_for_dead_letter(link, ledger, email_id) if outcome["worker"] else None
            outcome["letter"] = _take_away(link, ledger, email_id) or dead_letter_id
    show([{"email_id": email_id, **outcome}], as_json=as_json)
    if outcome["letter"] is not None:
        return OK
    if unavailable:
        raise OperationFailed(f"whether a sink has this message is not known: {unavailable}") from unavailable
    say("no worker has this message: it waits, or is delivered already")
    return NEGATIVE


def _revoke_locally(settings: Settings, email_id: str) -> str | None:
    """Revoke the message in the local worker that has it; return the name of that worker, or None."""
    client = None
    for process in running_processes(settings):
        if process.component == "worker":
            client = client or AdminClient(settings, current_user())
            if _revoke_in(client, process, email_id):
                return process.stem
    return None


def _revoke_in(client: AdminClient, process: RunningProcess, email_id: str) -> bool:
    return bool(client.post(process, "revoke", {"email_id": email_id})["revoked"])


def _wait_for_dead_letter(link: RedisLink, ledger: Ledger | None, email_id: str) -> str | None:
    """Wait until the worker has made a dead letter of the message; return the id of its latest, or None."""

    def is_settled() -> bool:
        return _pending_entry(link, email_id) is None and not any(
            each.holder for each in (ledger.outbox.started(email_id) if ledger else ())
        )

    if not wait_until(is_settled, REVOKE_SECONDS):
        return None
    keys = link.keys_for(email_id.partition(":")[0])  # it begins with the account
    dead = (each for page in EntryScanner(link, keys).dead_letter_pages() for each in page.entries)
    ids = [keys.format_entry_id(each.id) for each in dead if each.email_id == email_id]
    return ids[-1] if ids else None


def _take_away(link: RedisLink, ledger: Ledger | None, email_id: str) -> str | None:
    """Make a dead letter of a message, or of its delivery to each sink that has it; return the id of the last one."""
    from email_ingestion.ledger.outbox import DeliveryClaim  # noqa: PLC0415 - help comes without SQLAlchemy
    from email_ingestion.worker.sink_dispatcher import undelivered_message  # noqa: PLC0415

    entry = _pending_entry(link, email_id)
    operator = f"{socket.gethostname()}-{current_user()}"
    dead_letter_id = PendingEntries(link).dead_letter(entry, operator) if entry else None
    for started in ledger.outbox.started(email_id) if ledger else ():
        delivery = ledger.outbox.pending(started.sink, email_id) if ledger else None
        if ledger and delivery:
            message = undelivered_message(ledger, delivery, started.sink)
            fields = dead_letter_fields("operator", delivery.attempt, None, "", operator)
            dead_letter_id = DeadLetterQueue(link).add(message, fields)
            ledger.outbox.mark_dead(DeliveryClaim(started.sink, datetime.now(UTC)), [email_id])
    return dead_letter_id


def _pending_entry(link: RedisLink, email_id: str) -> PendingEntry | None:
    return next((each for each in PendingEntries(link).entries() if each.email_id == email_id), None)
