"""`reconcile --sink`: whether a sink has what it was given, and sending again what it has not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from email_ingestion.app.consumer_proof import PROVABLE, ConsumerProofs, open_comparison
from email_ingestion.cli.common import audited
from email_ingestion.cli.exit_codes import FAILED, NEGATIVE, OK
from email_ingestion.cli.output import printable, say, show
from email_ingestion.cli.progress_bars import run_with_progress
from email_ingestion.errors import OperationFailed, RedisConnectionError
from email_ingestion.ledger.maintenance import describe_ledger
from email_ingestion.ledger.store import open_ledger
from email_ingestion.stream import open_link

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.reconcile.consumer_report import ConsumerReport
    from email_ingestion.settings import Settings

NICE = 10  # of the comparison that nobody waits for: live mail's processes come first
NAMED = 20  # messages shown of a kind; --json names more
SENTENCES = {
    "not_ours": "are there that the database does not know",
    "erased": "are there although they were erased here",
    "not_owed": "are there although the routes, or a later configuration, did not send them there",
    "duplicates": "are there once more",
    "in_flight": "are on their way, or were delivered within the last minute",
    "dead_letters": "are dead letters of the sink: email-ingestion dlq list",
    "unknown": "are not there any more, and may have been used by the consumers: only they can tell",
}


def compare(settings: Settings, given: str, *, send_again: bool, presence: bool, as_json: bool) -> int:
    """Compare a sink with the database, print the report, and return the exit code."""
    sink = _pick(settings, given)
    if presence and hasattr(os, "nice"):
        os.nice(NICE)
    if send_again and sink == settings.sinks[0]:
        raise typer.BadParameter("--resend is for the sinks beside the database: `reconcile --repair` queues for it")
    if (missing := describe_ledger(settings.database_url)).endswith("the worker makes it"):
        raise OperationFailed(f"there is nothing to compare with: {missing}")
    link = open_link(settings.redis_address, "email-ingestion-reconcile")
    with (
        closing(open_ledger(settings.database_url)) as ledger,
        _sending(settings, ledger, sink, send_again) as resend,
        open_comparison(settings, ledger, sink, resend=resend, presence=presence) as comparison,
    ):
        total = ledger.count() * 2
        run_with_progress(f"comparing {sink}", comparison.steps(), lambda: (comparison.looked_at, total))
    report = comparison.report
    if report.complete is not None:
        with suppress(RedisConnectionError):  # it only tells the metrics
            ConsumerProofs(link).write(report)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report, send_again=send_again)
    if report.complete is False and report.resent == report.sum("missing") + report.sum("altered"):
        return FAILED if report.is_partial else OK
    return {True: OK, False: NEGATIVE, None: FAILED}[report.complete]


def _pick(settings: Settings, given: str) -> str:
    """Return the sink of SINKS with this name, or the only one of this kind."""
    of_kind = [each for each in settings.sinks if each.partition(":")[0] == given]
    found = given if given in settings.sinks else of_kind[0] if len(of_kind) == 1 else None
    if found is None:
        raise typer.BadParameter(f"SINKS names no sink {printable(given)!r}; it has {', '.join(settings.sinks)}")
    if found.partition(":")[0] not in PROVABLE:
        raise OperationFailed(
            f"nobody can look into the sink {found} from here: have its identities exported, and compare them with "
            "`email-ingestion reconcile --against FILE`"
        )
    return found


@contextmanager
def _sending(settings: Settings, ledger: Ledger, sink: str, send_again: bool) -> Iterator[Any]:
    if not send_again:
        yield None
        return
    with audited(settings.log_dir, "reconcile resend", {"sink": sink}) as outcome:
        outcome["resent"] = 0

        def resend(email_ids: list[str]) -> int:
            ledger.resends.add(sink, email_ids, ())
            outcome["resent"] += len(email_ids)
            return len(email_ids)

        yield resend


def _show(report: ConsumerReport, *, send_again: bool) -> None:
    show([_readable(row) for row in report.rows()], as_json=False)
    _show_named(report)
    for what, sentence in SENTENCES.items():
        number = report.unknown if what == "unknown" else report.sum(what)
        if number:
            typer.echo(f"{number:,} {sentence}")
    for each in report.unreadable[:NAMED]:
        say(f"not readable: {printable(each)}")
    sink, missing, altered = printable(report.sink), report.sum("missing"), report.sum("altered")
    if report.complete:
        typer.echo(f"{sink}: complete: all {report.sum('owed') - report.sum('in_flight'):,} messages are there")
    elif report.complete is None:
        say(f"{sink}: not everything could be looked at, so nobody knows whether it is complete")
    else:
        typer.echo(f"{sink}: {missing:,} missing, {altered:,} altered")
    if report.resent:
        typer.echo(f"{report.resent:,} are sent again; workers deliver them when nothing else waits for the sink")
    elif not send_again and report.complete is False and report.sink != "database":
        typer.echo(f"email-ingestion reconcile --sink {sink} --resend sends exactly these again")


def _show_named(report: ConsumerReport) -> None:
    for what in ("missing", "altered"):
        for email_id in report.named[what][:NAMED]:
            typer.echo(f"{what} there: {printable(email_id)}")
        if (left := report.sum(what) - NAMED) > 0:
            typer.echo(f"… {left:,} more are {what}; --json names the first {len(report.named[what]):,}")


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "account": row["account"] or "(none of ours)", "month": row["month"] or "?"}
