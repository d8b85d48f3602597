"""`email-ingestion incident …`: from the first alert to the post-mortem."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from email_ingestion.cli.common import Unkept, audited, current_user
from email_ingestion.cli.diagnostics import collect_into
from email_ingestion.cli.exit_codes import FAILED, NEGATIVE, OK, exit_code_of
from email_ingestion.cli.output import Json, printable, printable_lines, say, show
from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.settings import Settings, load_settings

if TYPE_CHECKING:
    from email_ingestion.http_requests import HttpAnswer
    from email_ingestion.incidents.assessment import Assessment
    from email_ingestion.incidents.course import IncidentCourse
    from email_ingestion.incidents.incident_log import Incident

incident = typer.Typer(no_args_is_help=True, help="Lead an incident: its number, its log, the texts people need.")
Severity = Literal["P0", "P1", "P2", "P3", "P4", "SEV1", "SEV2", "SEV3", "SEV4"]
Number = Annotated[
    str,
    typer.Argument(
        metavar="NUMBER", help="INC-YYYYMMDD-NNN, an end of it that only one has, or its alert while it is open."
    ),
]
Text = Annotated[str, typer.Argument(metavar="TEXT", help="What to write down.")]
WEBHOOK_SECONDS = 10.0
ACK_SECONDS = 24 * 3600.0


@incident.command("open")
def open_(
    title: Annotated[
        str, typer.Argument(metavar="[TITLE]", help="What is wrong, in a few words; else what the alert says.")
    ] = "",
    severity: Annotated[
        Severity | None, typer.Option(help="As section 1 of the runbook says; else the alert's, else P2.")
    ] = None,
    from_alert: Annotated[str, typer.Option(metavar="NAME", help="The alert that rang.")] = "",
    unless_open: Annotated[
        bool, typer.Option("--unless-open", help="Not if one is open for this alert: that one is printed.")
    ] = False,
    evidence: Annotated[bool, typer.Option(help="Collect the evidence now.")] = True,
) -> int:
    """Open an incident: print its number on the first line, then the text for colleagues.

    Its folder `data/incidents/NUMBER` gets an assessment of impact, scope and data risk, and the evidence. With
    INCIDENT_WEBHOOK a ticket is made.

    Examples:
      email-ingestion incident open --severity P2 "mail is late"
      email-ingestion incident open --from-alert EmailIngestionNoWorkers
      email-ingestion incident open --from-alert NoWorkers --unless-open "no worker is alive"
    """
    from email_ingestion.incidents import incident_log, texts  # noqa: PLC0415 - slow to load
    from email_ingestion.incidents.assessment import assess  # noqa: PLC0415

    settings, unkept = load_settings(), Unkept()
    title, grade = _described(" ".join(title.split()), severity, from_alert)
    try:
        details = {"title": title, "severity": grade}
        with audited(settings.log_dir, "incident open", details, unwritten=unkept.reasons) as outcome:
            new = incident_log.open_incident(title, grade, current_user(), from_alert, unless_open=unless_open)
            outcome["number"] = new.number
    except ConfigurationError as error:
        say(f"no incident was opened, so it has no number: {error}; then give the same order again")
        lost = incident_log.described_incident("(no number)", title, grade, current_user(), from_alert)
        typer.echo(texts.initial_text(lost, assess(settings, timedelta(minutes=30))))
        return exit_code_of(error)
    typer.echo(new.number)
    if [entry.kind for entry in new.entries] != ["opened"]:
        say(f"{new.number} is {new.state} for {printable(from_alert)} already: noted there that it fires again")
        return unkept.exit_code()
    text = texts.initial_text(new, _assess(settings, new, unkept))
    typer.echo(text)
    unkept.keep(new, "initial.md", text)
    if evidence:
        with unkept.tolerated():
            _collect(settings, new)
    if settings.incident_webhook:
        with unkept.tolerated():
            _make_ticket(settings, new, text)
    return unkept.exit_code()


def _described(title: str, severity: str | None, alert: str) -> tuple[str, str]:
    """Return title and severity, from what is known of the alert where they are not given. Raises BadParameter."""
    from email_ingestion.cli.alert import active_alert  # noqa: PLC0415 - slow to load
    from email_ingestion.ops.alert_thresholds import priority_of_alert  # noqa: PLC0415

    if not title and not alert:
        raise typer.BadParameter("TITLE says what is wrong, in a few words; or name the alert with --from-alert")
    known = active_alert(alert) if alert else {}
    severity = severity or known.get("priority") or (priority_of_alert(alert) if alert else None) or "P2"
    return title or known.get("text") or f"the alert {alert} rings", severity


@incident.command()
def note(
    number: Number,
    text: Text,
    kind: Annotated[
        Literal["note", "action", "factor", "lucky"], typer.Option(help="Where the post-mortem has it.")
    ] = "note",
) -> int:
    """Write something down: a note, an action to do, a contributing factor, where we were lucky.

    Examples:
      email-ingestion incident note 001 "restarted the worker"
      email-ingestion incident note 001 --kind action "alert on the age of the certificate"
    """
    from email_ingestion.incidents import incident_log  # noqa: PLC0415

    return _done(incident_log.add_entry(incident_log.find_incident(number), current_user(), kind, text))


@incident.command()
def ack(number: Number) -> int:
    """Say that you have it.

    Examples:
      email-ingestion incident ack 001
    """
    from email_ingestion.incidents import incident_log  # noqa: PLC0415

    found, user = incident_log.find_incident(number), current_user()
    if found.state != "open":
        by = found.resolved_by or found.acknowledged_by
        raise OperationFailed(f"{found.number} is {found.state} already, by {by}")
    changed = incident_log.change(found, user, "ack", "acknowledged", acknowledged_at=_now(), acknowledged_by=user)
    if found.alert:
        _acknowledge_alert(found, user)
    return _done(changed)


def _acknowledge_alert(found: Incident, user: str) -> None:
    """Let the alert that opened the incident be told no more: somebody has it in hand."""
    from email_ingestion.cli.alert import acknowledge  # noqa: PLC0415
    from email_ingestion.ops.alert_silences import Silence  # noqa: PLC0415 - slow to load

    now = datetime.now(UTC).timestamp()
    acknowledge(load_settings(), Silence(found.alert, "ack", now, now + ACK_SECONDS, user, found.number))


@incident.command("checklist")
def checklist_(
    number: Number,
    done: Annotated[
        list[int] | None, typer.Option("--done", metavar="N", help="Tick this one; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Show what is to be done in the first hour, day, week and month, by when, and what of it is done.

    What the incident's log shows is ticked by itself. Exit code 1 while something is overdue.

    Examples:
      email-ingestion incident checklist 001
      email-ingestion incident checklist 001 --done 7 --done 8
    """
    from email_ingestion.incidents import incident_log  # noqa: PLC0415 - slow to load
    from email_ingestion.incidents.checklists import checklist, checklist_text  # noqa: PLC0415

    found = incident_log.find_incident(number)
    texts = {item.number: item.text for item in checklist(found)}
    if unknown := [each for each in done or () if each not in texts]:
        raise typer.BadParameter(f"--done {unknown[0]}: the list has the numbers 1 to {len(texts)}")
    for each in done or ():
        found = incident_log.add_entry(found, current_user(), "done", texts[each])
    items = checklist(found)
    if as_json:
        typer.echo(json.dumps([asdict(item) | {"due": item.due.isoformat()} for item in items], indent=2))
    else:
        typer.echo(f"{found.number}: {printable(found.title)}\n\n{checklist_text(found)}")
    return 1 if any(not item.done and item.due < datetime.now(UTC) for item in items) else 0


@incident.command()
def update(number: Number, text: Text) -> int:
    """Assess again and print the text that tells colleagues how it goes.

    Examples:
      email-ingestion incident update 001 "the worker runs again, the backlog shrinks"
    """
    from email_ingestion.incidents import incident_log, texts  # noqa: PLC0415

    found, unkept = incident_log.find_incident(number), Unkept()
    with unkept.tolerated():
        incident_log.add_entry(found, current_user(), "update", text)
    return _print(found.number, "update.md", lambda found, now: texts.update_text(found, now, text), unkept)


@incident.command()
def resolve(
    number: Number,
    cause: Annotated[str, typer.Option(help="Why it happened.", show_default=False)],
    fix: Annotated[str, typer.Option(help="What ended it.", show_default=False)],
) -> int:
    """Say that it is over, why it happened and what ended it; print the text for colleagues.

    Examples:
      email-ingestion incident resolve 001 --cause "the worker was killed for its memory" --fix "more memory, restarted"
    """
    from email_ingestion.incidents import incident_log, texts  # noqa: PLC0415

    settings, found, user = load_settings(), incident_log.find_incident(number), current_user()
    if found.resolved_at:
        raise OperationFailed(f"{found.number} was resolved at {found.resolved_at} by {found.resolved_by}")
    ended = {"resolved_at": _now(), "resolved_by": user, "cause": cause, "fix": fix}
    unkept = Unkept()
    with audited(settings.log_dir, "incident resolve", {"number": found.number}, unwritten=unkept.reasons):
        found = incident_log.change(found, user, "resolved", f"{cause} -> {fix}", **ended)
    return _print(found.number, "resolved.md", _with_course(texts.resolved_text), unkept)


@incident.command()
def summary(number: Number) -> int:
    """Print a few sentences for people who decide.

    Examples:
      email-ingestion incident summary 001
    """
    from email_ingestion.incidents import texts  # noqa: PLC0415

    return _print(number, "summary.md", _with_course(texts.summary_text))


@incident.command()
def statuspage(number: Number) -> int:
    """Print the text for people outside.

    Examples:
      email-ingestion incident statuspage 001
    """
    from email_ingestion.incidents import texts  # noqa: PLC0415

    return _print(number, "statuspage.md", texts.statuspage_text)


@incident.command()
def postmortem(number: Number) -> int:
    """Print the post-mortem with its timeline: what people wrote and ordered, and what the processes logged.

    Examples:
      email-ingestion incident postmortem 001
    """
    from email_ingestion.incidents import texts  # noqa: PLC0415
    from email_ingestion.incidents.timeline import timeline  # noqa: PLC0415

    def make(found: Incident, now: Assessment, course: IncidentCourse) -> str:
        return texts.postmortem_text(found, now, course, timeline(found, load_settings().log_dir))

    return _print(number, "postmortem.md", _with_course(make))


@incident.command()
def verify(number: Number) -> int:
    """Run the verification checklist and tick what holds; exit code 1 when something does not.

    Examples:
      email-ingestion incident verify 001
    """
    from email_ingestion.doctor.checks import run_checks  # noqa: PLC0415
    from email_ingestion.doctor.service_checks import run_check  # noqa: PLC0415
    from email_ingestion.incidents import incident_log, texts  # noqa: PLC0415

    settings, found = load_settings(), incident_log.find_incident(number)
    results = run_check("all", settings, timedelta(minutes=10))
    wrong = [f"{each.check}: {each.cause}" for each in run_checks() if each.verdict != "ok"]
    doctor = (not wrong, "doctor: " + ("; ".join(wrong) or "nothing is wrong"))
    known = (bool(found.cause), f"the cause is known: {found.cause or 'not yet'}")
    text = texts.verification_text(found, results, [doctor, known])
    whole = doctor[0] and known[0] and all(result.level == "OK" for result in results)
    typer.echo(text)
    unkept = Unkept()
    unkept.keep(found, "verification.md", text)
    with unkept.tolerated():
        verdict = "all holds" if whole else "something does not hold yet"
        incident_log.add_entry(found, current_user(), "verified", verdict)
    return unkept.exit_code() or (OK if whole else NEGATIVE)


@incident.command("list")
def list_(as_json: Json = False) -> int:
    """Show all incidents, newest first; exit code 1 when there is none, 2 when one cannot be read.

    Examples:
      email-ingestion incident list
    """
    from email_ingestion.incidents import incident_log  # noqa: PLC0415

    unreadable: list[str] = []
    found = incident_log.list_incidents(unreadable.append)
    if as_json:
        typer.echo(json.dumps([asdict(each) | {"state": each.state} for each in found], indent=2))
    else:
        show([_row(each) for each in found], as_json=False)
    for sentence in unreadable:
        say(sentence)
    if unreadable:
        return FAILED
    if not found:
        say("there is no incident")
    return OK if found else NEGATIVE


def _row(each: Incident) -> dict[str, Any]:
    minutes = "" if each.seconds is None else f"{each.seconds / 60:.0f}"
    return {
        "number": each.number,
        "severity": each.severity,
        "state": each.state,
        "opened": each.opened_at,
        "minutes": minutes,
        "title": each.title,
    }


def _print(number: str, name: str, make: Callable[[Incident, Assessment], str], unkept: Unkept | None = None) -> int:
    """Assess an incident, print a text about it and keep that in its folder."""
    from email_ingestion.incidents.incident_log import find_incident  # noqa: PLC0415

    found, unkept = find_incident(number), unkept or Unkept()
    text = printable_lines(make(found, _assess(load_settings(), found, unkept)))  # an alert's words may be in it
    typer.echo(text)
    unkept.keep(found, name, text)
    return unkept.exit_code()


def _with_course(
    make: Callable[[Incident, Assessment, IncidentCourse], str],
) -> Callable[[Incident, Assessment], str]:
    """Let a text know how the incident went, too."""
    from email_ingestion.incidents.course import course_of  # noqa: PLC0415 - slow to load

    return lambda found, now: make(found, now, course_of(found, load_settings()))


def _assess(settings: Settings, found: Incident, unkept: Unkept) -> Assessment:
    """Assess the time since half an hour before the incident was opened, and keep the assessment."""
    from email_ingestion.incidents.assessment import assess  # noqa: PLC0415

    made = assess(settings, timedelta(seconds=(found.seconds or 0.0) + 1800))
    unkept.keep(found, "assessment.json", json.dumps(made.as_dict(), indent=2, ensure_ascii=False) + "\n")
    return made


def _collect(settings: Settings, found: Incident) -> None:
    manifest = collect_into(settings, found.folder / "evidence")
    missing = f", {len(manifest['missing'])} could not be had" if manifest["missing"] else ""
    typer.echo(f"evidence: {found.folder}/evidence, {len(manifest['files'])} files{missing}")


def _make_ticket(settings: Settings, found: Incident, text: str) -> None:
    """Post the incident to INCIDENT_WEBHOOK in the form of a GitHub issue; a failure is said and stops nothing."""
    import httpx  # noqa: PLC0415

    from email_ingestion.http_requests import ask  # noqa: PLC0415 - with it comes httpx
    from email_ingestion.incidents import incident_log  # noqa: PLC0415
    from email_ingestion.incidents.texts import without_markup  # noqa: PLC0415

    title = printable(f"{found.number} {found.severity}: {found.title}")
    body = {"title": title, "body": without_markup(text), "labels": ["incident", found.severity]}
    token = settings.incident_webhook_token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = ask("POST", str(settings.incident_webhook), seconds=WEBHOOK_SECONDS, body=body, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        say(f"no ticket was made: INCIDENT_WEBHOOK answers {printable(error)[:200]}")
        return
    if not answer.is_success:
        say(f"no ticket was made: INCIDENT_WEBHOOK answers {answer.status}")
        return
    url = _ticket_url(answer)
    incident_log.change(found, current_user(), "note", f"ticket {url or 'made'}", ticket=url)
    typer.echo(f"ticket: {printable(url) or 'made'}")


def _ticket_url(answer: HttpAnswer) -> str:
    """Return the address of a ticket that was made; empty where the answer names none."""
    try:
        reply = answer.json()
    except ValueError:
        return ""
    url = str(reply.get("html_url") or reply.get("url") or "") if isinstance(reply, dict) else ""
    return url if re.fullmatch(r"https?://[\x21-\x7e]{1,500}", url) else ""


def _done(found: Incident) -> int:
    typer.echo(f"{found.number} is {found.state}")
    return 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
