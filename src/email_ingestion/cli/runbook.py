"""`email-ingestion runbook …`: the section of an alert, and its commands one by one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from email_ingestion.cli.common import audited, current_user
from email_ingestion.cli.output import Json, printable, say, show
from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.settings import load_settings, log_dir

if TYPE_CHECKING:
    from email_ingestion.incidents.incident_log import Incident
    from email_ingestion.incidents.runbook_pages import RunbookSection, RunbookStep
    from email_ingestion.incidents.runbook_run import Answer, RanStep

MANY = 3  # sections that are found, above which only their names are printed


def runbook(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[run] [SEARCH…]", help="A number (2.1), an alert, words; `run` before it runs the section."
        ),
    ] = None,
    step: Annotated[bool, typer.Option("--step", help="With `run`: ask before each command.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With `run`: run all of them without asking.")] = False,
    incident: Annotated[
        str,
        typer.Option(
            help="With `run`: the incident that gets the transcript; else the only one open, or open for the section."
        ),
    ] = "",
    as_json: Json = False,
) -> int:
    """Print the section of the runbook for an alert, a number or words; without any, the list of sections.

    `run` executes the commands of the page one by one, each after you confirm it, says whether it showed what the page
    expects, and writes the transcript into the incident. Exit code 1 when nothing is found, or when the verification
    was not run to its end or not as the page says.

    Examples:
      email-ingestion runbook NoWorkers
      email-ingestion runbook "Redis connection failed"
      email-ingestion runbook run 2.1 --step
    """
    from email_ingestion.incidents.runbook_pages import read_sections, search_sections  # noqa: PLC0415 - slow to load

    words = words or []
    if words[:1] == ["run"]:
        return _run(" ".join(words[1:]), incident, step=step, yes=yes)
    if step or yes or incident:
        raise typer.BadParameter("--step, --yes and --incident go with `runbook run SECTION`")
    found = search_sections(" ".join(words)) if words else read_sections()
    if as_json:
        typer.echo(json.dumps([_described(each) | {"text": each.text} for each in found], indent=2))
    elif not words or len(found) > MANY:
        show([_described(each) for each in found], as_json=False)
    else:
        typer.echo("\n".join(each.text for each in found))
    if not found:
        say(f"no section of the runbooks has {printable(' '.join(words))!r}; `email-ingestion runbook` lists them")
    return 0 if found else 1


def _described(section: RunbookSection) -> dict[str, str]:
    alerts = " ".join(sorted(section.alerts))
    return {"section": section.number, "title": section.title, "page": section.page, "alerts": alerts}


def _run(words: str, number: str, *, step: bool, yes: bool) -> int:
    from email_ingestion.incidents.incident_log import add_entry, keep  # noqa: PLC0415 - slow to load
    from email_ingestion.incidents.runbook_pages import search_sections  # noqa: PLC0415
    from email_ingestion.incidents.runbook_run import run_section  # noqa: PLC0415

    found = search_sections(words) if words else []
    if len(found) != 1:
        names = ", ".join(each.heading for each in found[:5])
        raise typer.BadParameter(
            f"`run` takes one section: {names} fit"
            if names
            else "name one section: `email-ingestion runbook` lists them"
        )
    section, settings, user = found[0], load_settings(), current_user()
    if not (step or yes):
        for each in section.steps():
            typer.echo(f"{each.phase:<11}{each.command}" + (f"\n{'':<11}(not run: {each.skip})" if each.skip else ""))
        say("with --step each of them is run after you confirm it")
        return 0
    into, unwritten = _incident(number, section), list[str]()

    def ran(result: RanStep) -> None:
        typer.echo(f"=> {result.line.rpartition('`: ')[2]}")
        if into:
            try:
                add_entry(into, user, "ran", f"runbook {section.number or section.page}, {result.line}")
            except ConfigurationError as error:  # a section for a full disk must not end with it
                unwritten.append(f"not noted in {into.number}: {error}")

    details = {"section": section.number or section.page}
    with audited(log_dir(), "runbook run", details, unwritten=unwritten) as outcome:
        ask = _yes if yes else _ask
        transcript = run_section(
            section, settings, user, ask=ask, show_output=lambda text: typer.echo(text, nl=False), ran=ran
        )
        outcome |= {"steps": len(transcript.ran), "verified": transcript.is_verified}
    if into and transcript.ran:
        stem = section.number or section.page.removesuffix(".md")
        name = f"runbook-{stem.replace('.', '-')}.md"
        try:
            typer.echo(f"transcript: {keep(into, name, transcript.text())}")
        except ConfigurationError as error:
            unwritten.append(f"no transcript: {error}")
    for sentence in dict.fromkeys(unwritten):
        say(sentence)
    return 0 if transcript.is_verified else 1


def _incident(number: str, section: RunbookSection) -> Incident | None:
    """Return the incident that gets the transcript: the one named, the only one open, the only one for this section."""
    from email_ingestion.incidents.incident_log import (  # noqa: PLC0415 - slow to load
        ALERT_PREFIX,
        find_incident,
        list_incidents,
    )

    if number:
        return find_incident(number)
    going_on = [each for each in list_incidents() if not each.resolved_at]
    of_section = [each for each in going_on if each.alert.removeprefix(ALERT_PREFIX) in section.alerts]
    going_on = of_section if len(of_section) == 1 else going_on
    if len(going_on) == 1:
        say(f"the transcript goes into {going_on[0].number}: {printable(going_on[0].title)}")
        return going_on[0]
    if going_on:
        numbers = ", ".join(each.number for each in going_on[:5])
        raise OperationFailed(f"several incidents are open, name one with --incident: {numbers}")
    say("no incident is open, so no transcript is kept; `email-ingestion incident open` makes one")
    return None


def _yes(number: int, total: int, step: RunbookStep) -> Answer:
    typer.echo(f"\n[{number}/{total}] {step.phase}\n$ {step.command}")
    return "run"


def _ask(number: int, total: int, step: RunbookStep) -> Answer:
    """Ask until the answer is one; the end of the input is a `quit`."""
    alternative = f" (instead of {step.instead_of})" if step.instead_of else ""
    typer.echo(f"\n[{number}/{total}] {step.phase}{alternative}\n$ {step.command}")
    while True:
        typer.echo("run it? [y]es [s]kip [q]uit: ", nl=False)
        line = sys.stdin.readline()
        word = line.strip().casefold()
        if not line or word in {"q", "quit"}:
            return "quit"
        if word in {"s", "skip", "n", "no"}:
            return "skip"
        if word in {"y", "yes"}:
            return "run"
