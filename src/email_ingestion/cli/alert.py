"""`email-ingestion alert …`: what rings, who is told, and what somebody has in hand or wants to hear nothing of."""

from __future__ import annotations

import glob
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from email_ingestion.cli.common import audited, current_user, parse_duration
from email_ingestion.cli.output import Json, printable, say, show
from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.settings import Settings, load_settings

if TYPE_CHECKING:
    from email_ingestion.ops.alert_channels import Channel
    from email_ingestion.ops.alert_silences import Silence
    from email_ingestion.ops.notices import Notification

alert = typer.Typer(help="See what rings, tell people, acknowledge and silence.", no_args_is_help=True)
Priority = Literal["P0", "P1", "P2", "P3", "P4", "SEV1", "SEV2", "SEV3", "SEV4"]
Pattern = Annotated[str, typer.Argument(metavar="ALERT", help="A name, `SinkLate/webhook`, or a pattern: `Disk*`.")]
Ttl = Annotated[str, typer.Option("--ttl", metavar="SPAN", help="For how long: 30m, 4h, 2d.")]
Reason = Annotated[str, typer.Option(help="Why, for those who wonder.")]
NOBODY = "nobody would be told: set ALERT_CHANNELS, ALERT_EMAIL_RECIPIENTS or SLACK_ALERT_WEBHOOK"


@alert.command("test")
def try_channels() -> None:
    """Send a test notice to every channel.

    Exit code 0 when all of them took it, 2 when one did not, 78 when none is configured or one is misspelt.

    Examples:
      email-ingestion alert test
      ALERT_CHANNELS=ntfys://ntfy.example.com/mail email-ingestion alert test
    """
    from email_ingestion.ops.notices import Notification  # noqa: PLC0415 - slow to load

    taken = _send(
        load_settings(), Notification.of_text("P4", "Notices of email-ingestion reach you here: a test"), every=True
    )
    typer.echo(f"{len(taken)} channel(s) took the test notice")


@alert.command()
def send(
    priority: Annotated[Priority, typer.Argument(help="As section 1 of the runbook says.")],
    text: Annotated[str, typer.Argument(help="What people should know; no mail, no addresses.")],
) -> None:
    """Tell people in your own words: those who are told of this priority by config/contacts.toml, else all.

    Exit code 0 when every channel took it, 2 when one did not, 78 when none is configured.

    Examples:
      email-ingestion alert send P1 "Redis is being moved, mail is late until 15:00 UTC"
    """
    from email_ingestion.ops.notices import Notification, priority_of  # noqa: PLC0415 - slow to load

    settings = load_settings()
    ours = priority_of(priority) or "P2"
    if not text.strip():
        raise typer.BadParameter("TEXT is empty: say what people should know")
    with audited(settings.log_dir, "alert send", {"priority": ours}) as outcome:
        taken = _send(settings, Notification.of_text(ours, " ".join(text.split())), every=False)
        outcome["channels"] = [channel.name for channel in taken]
    typer.echo(f"{ours} told: {', '.join(f'{channel.name} ({channel.setting})' for channel in taken)}")


def _send(settings: Settings, notification: Notification, *, every: bool) -> list[Channel]:
    """Send to the channels of a priority or to `every` one; return those that took it. Raises OperationFailed."""
    from email_ingestion.ops import alert_channels  # noqa: PLC0415 - slow to load

    for sentence in alert_channels.sentences_about(settings):
        say(sentence)
    channels = alert_channels.configured_channels(settings)
    if not channels:
        raise ConfigurationError(f"{NOBODY}; see docs/monitoring.md")
    if every:
        channels = alert_channels.told_of_everything(channels)
    sent = alert_channels.AlertChannels(channels, settings.pagerduty_events_url).send_each(notification)
    failed = dict.fromkeys(channel.setting for channel, taken in sent if not taken)
    if failed:
        raise OperationFailed(
            f"{', '.join(failed)} did not take the notice: check the address and the credentials in it"
        )
    return [channel for channel, _ in sent]


@alert.command("list")
def list_(as_json: Json = False) -> int:
    """Show which alerts are active, since when, and whether people are told; exit code 1 when none is.

    Those of the producer's built-in monitor, as of its last look, and with ALERTMANAGER_URL those of Alertmanager. Exit
    code 2 when none is known of and the monitor has not looked of late.

    Examples:
      email-ingestion alert list
    """
    settings = load_settings()
    built_in, blind = _look(settings)
    rows = [*built_in, *_of_alertmanager(settings)]
    if as_json and (rows or not blind):  # an empty list would say that nothing rings
        typer.echo(json.dumps(rows, indent=2))
    elif not as_json:
        shown = ("alert", "priority", "state", "since", "text", "by")
        show([{name: printable(row.get(name, "")) for name in shown} for row in rows], as_json=False)
    if blind:
        say(blind)
    elif not rows:
        say("no alert is active")
    return 0 if rows else 2 if blind else 1


@alert.command()
def ack(pattern: Pattern, ttl: Ttl = "8h", reason: Reason = "") -> int:
    """Say that you have an alert in hand: it is not told again until it is over, or until the time is up.

    What rings now is acknowledged: the same trouble of another account, sink or folder, that begins later, is told.

    Examples:
      email-ingestion alert ack NoWorkers
      email-ingestion alert ack SinkLate/webhook --ttl 2h --reason "their maintenance ends at 14:00"
    """
    return _silence(pattern, "ack", ttl, reason)


@alert.command()
def silence(pattern: Pattern, ttl: Ttl = "1h", reason: Reason = "") -> int:
    """Tell nobody of these alerts for a while, as before maintenance; what still rings then is told.

    With ALERTMANAGER_URL the silence is made there too.

    Examples:
      email-ingestion alert silence "Redis*" --ttl 30m --reason "Redis is being moved"
      email-ingestion alert silence "*" --ttl 10m
    """
    return _silence(pattern, "silence", ttl, reason)


@alert.command()
def unsilence(pattern: Pattern) -> int:
    """End an acknowledgement or a silence, here and in Alertmanager; exit code 1 when there is none of this pattern.

    Examples:
      email-ingestion alert unsilence "Redis*"
    """
    from email_ingestion.fleet.alertmanager import Alertmanager  # noqa: PLC0415 - slow to load
    from email_ingestion.ops.alert_silences import PREFIX, end_silences  # noqa: PLC0415

    settings, wanted = load_settings(), pattern.removeprefix(PREFIX)
    with audited(settings.log_dir, "alert unsilence", {"alert": pattern}):
        gone = end_silences(lambda each: _is_named(each.pattern.removeprefix(PREFIX), each.kind, wanted), time.time())
        ended = len([each for each in gone if each.until > time.time()])
        if settings.alertmanager_url:
            ended += Alertmanager(settings.alertmanager_url).end(wanted)
    if not ended:
        say(f"nothing is silenced under {printable(pattern)!r}")
        return 1
    typer.echo(f"{printable(pattern)} is told again")
    return 0


def _is_named(pattern: str, kind: str, wanted: str) -> bool:
    """Tell whether a silence is called so: an acknowledgement by its name stands with the accounts that rang then."""
    return pattern in {wanted, glob.escape(wanted)} or (kind == "ack" and pattern.partition("/")[0] == wanted)


def _silence(pattern: str, kind: Literal["ack", "silence"], ttl: str, reason: str) -> int:
    from email_ingestion.fleet.alertmanager import Alertmanager  # noqa: PLC0415 - slow to load
    from email_ingestion.ops.alert_silences import Silence, add_silence  # noqa: PLC0415 - slow to load

    settings, now, user = load_settings(), time.time(), current_user()
    if not pattern.strip():
        raise typer.BadParameter("ALERT is empty: name one, or `*` for all")
    made = Silence(pattern.strip(), kind, now, now + parse_duration(ttl, "--ttl").total_seconds(), user, reason)
    until = datetime.fromtimestamp(made.until, UTC).isoformat(timespec="seconds")
    with audited(settings.log_dir, f"alert {kind}", {"alert": made.pattern, "until": until, "reason": reason}):
        if kind == "ack":
            rings = acknowledge(settings, made)
        else:
            add_silence(made)
            rings = _ringing(settings, made)
        if settings.alertmanager_url:
            Alertmanager(settings.alertmanager_url).silence(made.pattern, now, made.until, user, reason or kind)
    if not rings and kind == "ack":
        say("no built-in alert of that name is active; should it begin to ring, it is acknowledged")
    where = " here and in Alertmanager" if settings.alertmanager_url else ""
    typer.echo(f"{printable(made.pattern)} is {'acknowledged' if kind == 'ack' else 'silenced'}{where} until {until}")
    for row in rings:
        typer.echo(f"  {row['priority']} {printable(row['alert'])}: {printable(row['text'])}")
    return 0


def acknowledge(settings: Settings, made: Silence) -> list[dict[str, Any]]:
    """Acknowledge each alert that rings and is meant; return them. Where none does, what begins to ring is meant.

    Somebody has in hand what rings: the same trouble of another account, sink or folder, that begins later, is told.
    """
    from email_ingestion.ops.alert_silences import add_silence  # noqa: PLC0415 - slow to load

    rings = _ringing(settings, made)
    for pattern in [glob.escape(row["alert"]) for row in rings] or [made.pattern]:
        add_silence(replace(made, pattern=pattern))
    return rings


def _ringing(settings: Settings, made: Silence) -> list[dict[str, Any]]:
    return [row for row in _look(settings)[0] if made.matches(row["alert"])]


def _look(settings: Settings) -> tuple[list[dict[str, Any]], str]:
    """Return what the producer's monitor saw last, as `alert list` shows it, and why that says nothing of now."""
    from email_ingestion.ops.alert_monitor import ACTIVE_FILE  # noqa: PLC0415 - slow to load
    from email_ingestion.ops.alert_silences import read_silences  # noqa: PLC0415

    seen = _read_active(ACTIVE_FILE)
    if seen is None:
        blind = "not known: the producer has not looked at its alerts yet, as it does every ALERT_SECONDS while it runs"
        return [], f"{blind}; `email-ingestion check all` looks now"
    age = time.time() - datetime.fromisoformat(seen["looked_at"]).timestamp()
    late = age > 2 * settings.alert_seconds + 30
    blind = (
        f"the producer looked {age / 60:.0f} min ago last: it does not run, or cannot write: `email-ingestion doctor`"
    )
    silences = [each for each in read_silences() if each.until > time.time()]
    rows = []
    for found in seen["alerts"]:
        row = found
        silenced = next((each for each in silences if each.matches(found["alert"])), None)
        if silenced:
            state = "acknowledged" if silenced.kind == "ack" else "silenced"
            row = {**row, "state": state, "by": silenced.user}
        rows.append(row)
    return rows, blind if late else ""


def active_alert(name: str) -> dict[str, Any]:
    """Return an alert as the producer's monitor saw it last; nothing when it does not ring there."""
    from email_ingestion.ops.alert_monitor import ACTIVE_FILE  # noqa: PLC0415 - slow to load
    from email_ingestion.ops.alert_silences import PREFIX  # noqa: PLC0415

    wanted = name.removeprefix(PREFIX)
    found = (_read_active(ACTIVE_FILE) or {}).get("alerts", [])
    return next((row for row in found if wanted in {row["alert"], row["alert"].partition("/")[0]}), {})


def _read_active(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OperationFailed(f"{path} cannot be read: {error}") from error
    return dict(found)


def _of_alertmanager(settings: Settings) -> list[dict[str, Any]]:
    from email_ingestion.fleet.alertmanager import Alertmanager  # noqa: PLC0415 - slow to load

    return Alertmanager(settings.alertmanager_url).alerts() if settings.alertmanager_url else []
