"""`pause`, `resume`, `degrade`, `priority` and `log-level`: overrides of operators that end by themselves.

Without `--all` they go directly to the processes of this machine, which needs no Redis. With `--all` they go into
Redis, where every process reads them each second; it keeps to them while Redis is away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer

from email_ingestion.cli.common import OrderTurns, audited, current_user, parse_duration, wait_until
from email_ingestion.cli.exit_codes import FAILED, OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.errors import OperationFailed, RedisConnectionError
from email_ingestion.fleet.admin_client import AdminClient, RunningProcess, matching, running_processes
from email_ingestion.overrides import LEVEL, PAUSE, PRIORITY, Level, Override
from email_ingestion.settings import Settings, load_settings

FLEET_SECONDS = 10.0  # how long processes elsewhere may take to obey

Row = dict[str, Any]

Component = Literal["producer", "worker"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Which = Annotated[Component, typer.Argument(help="Which processes.", show_default=False)]
Ttl = Annotated[str, typer.Option("--ttl", metavar="SPAN", help="How long: 90s, 15m, 2h. It ends by itself.")]
All = Annotated[bool, typer.Option("--all", help="Every process on every machine, through Redis.")]


def pause(component: Which, ttl: Ttl = "15m", everywhere: All = False, as_json: Json = False) -> int:
    """Let producer or workers take no new work; they stay alive and go on by themselves.

    Examples:
      email-ingestion pause producer --ttl 1h
      email-ingestion pause worker --all
    """
    seconds = _seconds(ttl)
    override = Override("", seconds, current_user())
    settings = load_settings()
    if everywhere:
        return _fleet(settings, f"{PAUSE}:{component}", override, lambda row: row["paused"], component, as_json=as_json)
    body = {"ttl_seconds": seconds}
    return _local(settings, component, "pause", body, lambda row: row["paused"], as_json=as_json)


def resume(component: Which, everywhere: All = False, as_json: Json = False) -> int:
    """Let paused processes go on.

    Examples:
      email-ingestion resume producer
      email-ingestion resume worker --all
    """
    settings = load_settings()
    if everywhere:
        name = f"{PAUSE}:{component}"
        return _fleet(settings, name, None, lambda row: not row["paused"], component, as_json=as_json)
    return _local(settings, component, "resume", {}, lambda row: not row["paused"], as_json=as_json)


def degrade(
    level: Annotated[Level, typer.Argument(help="What is still served.", show_default=False)],
    ttl: Ttl = "1h",
    everywhere: All = False,
    as_json: Json = False,
) -> int:
    """Serve less for a while: DEGRADED new mail only, MINIMAL into the database only, MAINTENANCE nothing.

    What has to wait is kept where it is, and done when the time is over.

    Examples:
      email-ingestion degrade MAINTENANCE --ttl 30m --all
      email-ingestion degrade NORMAL --all
    """
    seconds = _seconds(ttl)
    settings = load_settings()

    def is_done(row: Row) -> bool:
        return bool(row["level"] == level)

    if everywhere:
        override = None if level == "NORMAL" else Override(level, seconds, current_user())
        return _fleet(settings, LEVEL, override, is_done, None, as_json=as_json)
    body = {"level": level, "ttl_seconds": seconds}
    return _local(settings, None, "degrade", body, is_done, as_json=as_json)


def priority(
    min_priority: Annotated[
        int,
        typer.Argument(min=0, max=10, metavar="least", help="Mail below it waits; 0: none.", show_default=False),
    ],
    ttl: Ttl = "1h",
    everywhere: All = False,
    as_json: Json = False,
) -> int:
    """Let workers take only mail of a priority, 0 to 10, of LEAST or more for a while; the rest waits in the stream.

    Mail has 5 unless a route gives it another one, 7 or 3 where its sender does. A worker that was started with
    --min-priority goes no lower than that.

    Examples:
      email-ingestion priority 8 --ttl 30m --all
      email-ingestion priority 0 --all
    """
    seconds = _seconds(ttl)
    settings = load_settings()

    def is_done(row: Row) -> bool:
        return bool(row["min_priority"] == min_priority)

    if everywhere:
        override = Override(str(min_priority), seconds, current_user()) if min_priority else None
        return _fleet(settings, PRIORITY, override, is_done, "worker", as_json=as_json)
    body = {"min_priority": min_priority, "ttl_seconds": seconds}
    return _local(settings, "worker", "priority", body, is_done, as_json=as_json)


def log_level(
    level: Annotated[LogLevel, typer.Argument(help="Least level written.", show_default=False)],
    ttl: Ttl = "15m",
    as_json: Json = False,
) -> int:
    """Let the processes of this machine log more or less for a while.

    Examples:
      email-ingestion log-level DEBUG --ttl 5m
    """
    settings = load_settings()
    body = {"level": level, "ttl_seconds": _seconds(ttl)}
    processes = matching(running_processes(settings), lambda _: True, "answers")
    client = AdminClient(settings, current_user())
    rows = [{"process": each.stem, **client.post(each, "log-level", body)} for each in processes]
    show(rows, as_json=as_json)
    return OK if all(row["level"] == level for row in rows) else FAILED


def _seconds(ttl: str) -> float:
    return parse_duration(ttl, "--ttl").total_seconds()


def _local(
    settings: Settings,
    component: Component | None,
    path: str,
    body: Mapping[str, Any],
    is_done: Callable[[Row], bool],
    *,
    as_json: bool,
) -> int:
    of_component = _of_component(component)
    processes = matching(running_processes(settings), of_component, f"is a {component}" if component else "answers")
    client = AdminClient(settings, current_user())
    for process in processes:
        client.post(process, path, body)
    rows = [
        _row(process.stem, process.body["control"]) for process in running_processes(settings) if of_component(process)
    ]
    return _answer(rows, len(processes), is_done, as_json=as_json)


def _of_component(component: Component | None) -> Callable[[RunningProcess], bool]:
    return lambda process: component is None or process.component == component


def _row(process: str, control: Mapping[str, Any]) -> Row:
    override = control["pause"] or control["degradation"] or control["priority"] or {}
    ends = override.get("ends_in_seconds")
    return {
        "process": process,
        "paused": control["paused"],
        "level": control["level"],
        "min_priority": control["min_priority"],
        "scope": override.get("scope"),
        "by": override.get("by"),
        "ends_in_seconds": ends,
    }


def _fleet(
    settings: Settings,
    name: str,
    override: Override | None,
    is_done: Callable[[Row], bool],
    component: Component | None,
    *,
    as_json: bool,
) -> int:
    from email_ingestion.stream import SharedOverrides, open_link, read_presences  # noqa: PLC0415 - often not needed

    link = open_link(settings.redis_address, "email-ingestion-control")
    details = {
        "order": name,
        "value": override.value if override else None,
        "seconds": override.seconds if override else 0,
    }

    turns = OrderTurns()

    def presences() -> list[dict[str, Any]]:
        return [each for each in read_presences(link) if component in {None, each["component"]}]

    def row(presence: Mapping[str, Any]) -> Row:
        return {
            "process": presence["instance"],
            **{key: presence.get(key) for key in ("paused", "level", "min_priority")},
        }

    def are_settled() -> bool:
        """Return whether each process is as asked, or has read the order and another one holds."""
        read = [turns.has_read(each["instance"], each.get("seen")) or is_done(row(each)) for each in presences()]
        return all(read)

    try:
        with audited(settings.log_dir, "fleet order", details):
            shared = SharedOverrides(link)
            shared.set(name, override) if override else shared.clear(name)
        wait_until(are_settled, FLEET_SECONDS)
        found = list(map(row, presences()))
    except RedisConnectionError as error:
        raise OperationFailed(
            f"{str(error).rstrip('.')}; without --all the processes of this machine are told directly"
        ) from error
    if not found:
        say("no process runs now; those that start will obey")
    return _answer(found, len(found), is_done, as_json=as_json)


def _answer(rows: list[Row], expected: int, is_done: Callable[[Row], bool], *, as_json: bool) -> int:
    show(rows, as_json=as_json)
    if len(rows) == expected and all(map(is_done, rows)):
        return OK
    say("not every process is as asked: another order holds, for all or for one of them; --all or its absence decides")
    return FAILED
