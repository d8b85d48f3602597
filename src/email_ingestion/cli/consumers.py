"""`email-ingestion consumers`: the workers Redis knows by name, those that are gone for good among them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from email_ingestion.cli.common import audited, open_redis, wait_until
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.stream.stuck import Consumer, Stucks

TAKEN_OVER_SECONDS = 20.0  # how long the living workers get to take over what was let go

consumers = typer.Typer(help="See the workers Redis knows by name, and remove those that are gone.")


@consumers.command("list")
def list_consumers(as_json: Json = False) -> int:
    """List the consumers of the group. Exit code 0 when there are some, 1 when there are none.

    Examples:
      email-ingestion consumers list
    """
    _, link = open_redis("consumers")
    found = Stucks(link).consumers()
    show([asdict(each) for each in found], as_json=as_json)
    return OK if found else NEGATIVE


@consumers.command()
def prune(
    release: Annotated[
        bool, typer.Option("--release", help="First let living workers take over what the gone ones left pending.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Remove consumers whose process is gone, but never one with something pending. Exit code 1 when one is left.

    Examples:
      email-ingestion consumers prune
      email-ingestion consumers prune --release
    """
    settings, link = open_redis("consumers")
    stucks = Stucks(link)
    with audited(settings.log_dir, "consumers prune", {"release": release}) as outcome:
        if release:
            _hand_over(stucks)
        pruned = [each.name for each in _gone(stucks) if each.pending == 0 and stucks.prune(each.name)]
        left = [each.name for each in _gone(stucks)]
        outcome |= {"pruned": pruned, "left": left}
    show(
        [{"consumer": name, "pruned": True} for name in pruned]
        + [{"consumer": name, "pruned": False} for name in left],
        as_json=as_json,
    )
    if left:
        say("what is left has entries pending: a worker that lives takes them over; --release lets it at once")
    return NEGATIVE if left else OK


def _gone(stucks: Stucks) -> list[Consumer]:
    return [each for each in stucks.consumers() if not each.alive]


def _hand_over(stucks: Stucks) -> None:
    for each in _gone(stucks):
        stucks.let_go(list(stucks.entries(consumer=each.name)))
    wait_until(lambda: not any(each.pending for each in _gone(stucks)), TAKEN_OVER_SECONDS)
