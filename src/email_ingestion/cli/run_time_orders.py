"""`set`, `feature`, `sink` and `route block`: orders about one part of the work that end by themselves.

As with `pause`: without `--all` they go to the processes of this machine, with it through Redis to all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from email_ingestion.cli.common import OrderTurns, audited, current_user, parse_duration, wait_until
from email_ingestion.cli.exit_codes import FAILED, NEGATIVE, OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.errors import OperationFailed, RedisConnectionError
from email_ingestion.fleet.admin_client import AdminClient, RunningProcess, matching, running_processes
from email_ingestion.overrides import BATCH_SIZE, BLOCK, FEATURE, SINK, Feature, Override, check_order
from email_ingestion.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

FLEET_SECONDS = 10.0  # how long processes elsewhere may take to obey

Ttl = Annotated[str, typer.Option("--ttl", metavar="SPAN", help="How long: 90s, 15m, 2h. It ends by itself.")]
All = Annotated[bool, typer.Option("--all", help="Every process on every machine, through Redis.")]
FeatureName = Annotated[Feature, typer.Argument(help="Which part.", show_default=False)]
SinkName = Annotated[str, typer.Argument(metavar="NAME", help="A sink of SINKS.", show_default=False)]
Sender = Annotated[
    str,
    typer.Option("--sender", metavar="PATTERN", help="An address or a domain; * and ? as in file names."),
]

set_ = typer.Typer(no_args_is_help=True, help="Change a setting of the running processes for a while.")
feature = typer.Typer(no_args_is_help=True, help="Switch a part of the work off for a while.")
sink = typer.Typer(no_args_is_help=True, help="Let one sink wait; the database and the others go on.")


@set_.command("batch-size")
def batch_size(
    number: Annotated[
        int, typer.Argument(metavar="N", min=1, max=1000, help="Messages a worker takes at once.", show_default=False)
    ],
    ttl: Ttl = "1h",
    everywhere: All = False,
    as_json: Json = False,
) -> int:
    """Let workers take N messages at once for a while, instead of WORKER_BATCH_SIZE: 1 finds a message at fault.

    Examples:
      email-ingestion set batch-size 10 --ttl 30m
      email-ingestion set batch-size 500 --ttl 2h --all
    """
    return _order("worker", BATCH_SIZE, str(number), ttl, everywhere=everywhere, as_json=as_json)


@set_.command("default")
def default(
    name: Annotated[Literal["batch-size"], typer.Argument(help="Which setting.", show_default=False)],
    everywhere: All = False,
    as_json: Json = False,
) -> int:
    """Let a setting be again what the configuration says.

    Examples:
      email-ingestion set default batch-size
    """
    return _order("worker", name, "", "1s", everywhere=everywhere, as_json=as_json)


@feature.command("off")
def off(name: FeatureName, ttl: Ttl = "1h", everywhere: All = False, as_json: Json = False) -> int:
    """Switch a part of the producer's work off for a while; what it leaves undone is done when the time is over.

    `audit`: the periodic comparison of the mailbox with what is known of it (`reconcile`; the audit log is not
    touched). `history`: reading older mail, backfills included. `canary`: the trial messages. `labels`: label changes.

    Examples:
      email-ingestion feature off history --ttl 2h
      email-ingestion feature off audit --ttl 30m --all
    """
    return _order("producer", f"{FEATURE}{name}", "off", ttl, everywhere=everywhere, as_json=as_json)


@feature.command("on")
def on(name: FeatureName, everywhere: All = False, as_json: Json = False) -> int:
    """Switch a part on again.

    Examples:
      email-ingestion feature on history
    """
    return _order("producer", f"{FEATURE}{name}", "", "1s", everywhere=everywhere, as_json=as_json)


@feature.command("list")
def features(as_json: Json = False) -> int:
    """Show every such order that is in force on this machine. Exit code 1 when there is none.

    Examples:
      email-ingestion feature list
    """
    rows = [
        {"process": process.stem, **each}
        for process in running_processes(load_settings())
        for each in process.body["control"].get("orders", ())
    ]
    show(rows, as_json=as_json)
    if not rows:
        say("no such order is in force on this machine")
    return OK if rows else NEGATIVE


@sink.command("pause")
def pause_sink(name: SinkName, ttl: Ttl = "15m", everywhere: All = False, as_json: Json = False) -> int:
    """Give a sink nothing for a while: the database keeps what it is owed, and it gets all of it afterwards.

    Examples:
      email-ingestion sink pause webhook --ttl 1h
    """
    return _order(None, f"{SINK}{_known_sink(name)}", "paused", ttl, everywhere=everywhere, as_json=as_json)


@sink.command("resume")
def resume_sink(name: SinkName, everywhere: All = False, as_json: Json = False) -> int:
    """Give a sink its messages again.

    Examples:
      email-ingestion sink resume webhook
    """
    return _order(None, f"{SINK}{_known_sink(name)}", "", "1s", everywhere=everywhere, as_json=as_json)


def block(sender: Sender, ttl: Ttl = "1h", everywhere: All = False, as_json: Json = False) -> int:
    """Put the mail of a sender aside for a while: it becomes dead letters, neither delivered nor lost.

    `email-ingestion dlq list --reason operator` shows it, `dlq replay` delivers it, `dlq purge` gives it up. The
    sender is the address in From. What was delivered before stays where it is.

    Examples:
      email-ingestion route block --sender '*@flood.example' --ttl 2h --all
      email-ingestion route block --sender ada@example.com
    """
    return _order("worker", f"{BLOCK}{sender.lower()}", "blocked", ttl, everywhere=everywhere, as_json=as_json)


def unblock(sender: Sender, everywhere: All = False, as_json: Json = False) -> int:
    """Deliver the mail of a sender again; what was put aside stays among the dead letters.

    Examples:
      email-ingestion route unblock --sender '*@flood.example' --all
    """
    return _order("worker", f"{BLOCK}{sender.lower()}", "", "1s", everywhere=everywhere, as_json=as_json)


def _known_sink(name: str) -> str:
    sinks = load_settings().sinks[1:]
    if name == "database":
        raise typer.BadParameter("the database comes first: without it nothing moves; email-ingestion pause worker")
    if name not in sinks:
        raise typer.BadParameter(f"there is no such sink; in SINKS are, beside the database: {', '.join(sinks) or '-'}")
    return name


def _order(component: str | None, name: str, value: str, ttl: str, *, everywhere: bool, as_json: bool) -> int:
    """Give an order, or end it with an empty value, and print the state read back."""
    seconds = parse_duration(ttl, "--ttl").total_seconds()
    if (problem := check_order(name, value or None)) is not None:
        raise typer.BadParameter(problem)
    settings = load_settings()
    if everywhere:
        _order_all(settings, name, value, seconds)
    else:
        _order_here(settings, component, name, value, seconds)

    def rows() -> list[dict[str, Any]]:
        found = (each for each in running_processes(settings) if component in {None, each.component})
        return [_row(each, name) for each in found]

    def is_done(row: Mapping[str, Any]) -> bool:
        return bool(row["value"] == (value or None))

    turns = OrderTurns()

    def are_settled() -> bool:
        """Return whether each process is as asked, or has read the order and another one holds."""
        found = [each for each in running_processes(settings) if component in {None, each.component}]
        read = [turns.has_read(each.stem, _last_reading(each)) or is_done(_row(each, name)) for each in found]
        return all(read)

    wait_until(are_settled, FLEET_SECONDS if everywhere else 0.0)
    found = rows()
    show(found, as_json=as_json)
    if not found:
        say(f"no {component or 'process'} runs on this machine; those that run elsewhere, or start, obey")
    if all(map(is_done, found)):
        return OK
    say("not every process is as asked: another order holds, for all or for one of them; --all or its absence decides")
    return FAILED


def _order_here(settings: Settings, component: str | None, name: str, value: str, seconds: float) -> None:
    processes = matching(
        running_processes(settings), lambda each: component in {None, each.component}, f"is a {component}"
    )
    client = AdminClient(settings, current_user())
    for process in processes:
        client.post(process, "order", {"name": name, "value": value, "ttl_seconds": seconds})


def _order_all(settings: Settings, name: str, value: str, seconds: float) -> None:
    from email_ingestion.stream import SharedOverrides, open_link  # noqa: PLC0415 - often not needed

    link = open_link(settings.redis_address, "email-ingestion-control")
    try:
        with audited(settings.log_dir, "fleet order", {"order": name, "value": value or None, "seconds": seconds}):
            shared = SharedOverrides(link)
            shared.set(name, Override(value, seconds, current_user())) if value else shared.clear(name)
    except RedisConnectionError as error:
        raise OperationFailed(
            f"{str(error).rstrip('.')}; without --all the processes of this machine are told directly"
        ) from error


def _last_reading(process: RunningProcess) -> object:
    """Return when it last read Redis, orders included; None while it cannot."""
    return (process.body.get("stream") or {}).get("collected_at")


def _row(process: RunningProcess, name: str) -> dict[str, Any]:
    found = [each for each in process.body["control"].get("orders", ()) if each["name"] == name]
    order: dict[str, Any] = max(found, key=lambda each: float(each["ends_in_seconds"]), default={})
    return {
        "process": process.stem,
        "order": name,
        "value": order.get("value"),
        "scope": order.get("scope"),
        "by": order.get("by"),
        "ends_in_seconds": order.get("ends_in_seconds"),
    }
