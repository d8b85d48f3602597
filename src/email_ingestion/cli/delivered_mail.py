"""`search` and `export`: find delivered mail, and write a message as it came or as the record made of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from email_ingestion.atomic_files import atomic_write
from email_ingestion.cli.common import audit_read, open_delivered, parse_instant
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.id_arguments import pick_delivered
from email_ingestion.cli.output import printable, say
from email_ingestion.errors import OperationFailed
from email_ingestion.settings import load_settings

if TYPE_CHECKING:
    from email_ingestion.ledger.model import StoredFacts
    from email_ingestion.ledger.search_hits import Hit

COUNTED = 1000  # hits are counted exactly up to this
MAX_PRIORITY = 10
MAX_REPEATED = 20  # labels or tags: each is a condition, of which a database takes some hundreds
COLUMNS = ("email_id", "date", "sender", "subject", "snippet")


def search(
    words: Annotated[
        list[str] | None,
        typer.Argument(help='What the mail must contain: a word, "a phrase", begin*, -without.', show_default=False),
    ] = None,
    *,
    sender: Annotated[str | None, typer.Option("--from", help="Part of the sender's name or address.")] = None,
    recipient: Annotated[str | None, typer.Option("--to", help="Part of a To or Cc name or address.")] = None,
    subject: Annotated[str | None, typer.Option(help="Part of the subject.")] = None,
    after: Annotated[
        str | None, typer.Option(metavar="DATE", help="Received then or later: 2026-01-31, or 7d for a span.")
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="DATE", help="Received before then.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label it has; may be repeated.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag that a route gave it; may be repeated.")] = None,
    priority: Annotated[str | None, typer.Option(metavar="P", help="0 to 10, or 6+ for 6 and more.")] = None,
    account: Annotated[str | None, typer.Option(help="Only this account, by its configured name.")] = None,
    has_attachment: Annotated[
        bool | None, typer.Option("--has-attachment/--no-attachment", help="With or without attachments.")
    ] = None,
    filename: Annotated[str | None, typer.Option(help="Part of an attachment's name, or a pattern: *.pdf")] = None,
    list_id: Annotated[str | None, typer.Option("--list", help="Part of a mailing list's List-Id.")] = None,
    bounce: Annotated[bool | None, typer.Option("--bounce/--no-bounce", help="Reports of failed delivery.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most messages shown.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list.")] = False,
) -> None:
    """Find delivered mail, newest first. Exit code 0 when there is some, 1 when there is none.

    Words are looked for in subject, sender, text and names of attachments. The ID on a terminal is short: commands
    take every beginning of an identity, or of its number, of 6 characters or more that means one message only.

    Examples:
      email-ingestion search invoice 2026
      email-ingestion search '"quarterly report" anna* -draft'
      email-ingestion search --from example.org --after 30d --filename '*.pdf'
      email-ingestion search --json --limit 100 example.org
    """
    from email_ingestion.ledger.search_filter import SearchFilter  # noqa: PLC0415 - help comes without SQLAlchemy

    only = SearchFilter(
        sender=sender,
        recipient=recipient,
        subject=subject,
        after=parse_instant(after, "--after"),
        before=parse_instant(before, "--before"),
        labels=tuple(label or ()),
        tags=tuple(tag or ()),
        **_priorities(priority),
        account=account,
        has_attachment=has_attachment,
        filename=filename,
        list_id=list_id,
        bounce=bounce,
    )
    if not words and only.is_empty:
        raise typer.BadParameter("say what to look for: words, or one of the options such as --from")
    if len(only.labels) > MAX_REPEATED or len(only.tags) > MAX_REPEATED:
        raise typer.BadParameter(f"--label and --tag may be given {MAX_REPEATED} times each")
    if only.after and only.before and only.after >= only.before:
        raise typer.BadParameter("--after must be earlier than --before")
    query = " ".join(words or ())
    settings = load_settings()
    with Console(stderr=True).status("searching"), open_delivered(settings, account) as ledger:
        search_in = ledger.mail_search
        hits = search_in.hits(query, limit, only)
        total = search_in.count(query, only, COUNTED) if len(hits) == limit else len(hits)
        ids = search_in.short_ids([hit.email_id for hit in hits]) if not as_json and Console().is_terminal else {}
    filters = [each.name for each in fields(only) if getattr(only, each.name) not in (None, ())]
    found = [hit.email_id for hit in hits]
    audit_read(settings.log_dir, "search", len(hits), found, filters=filters + ["words"] * bool(words))
    _show(hits, ids, total, as_json=as_json)
    raise typer.Exit(OK if hits else NEGATIVE)


def _priorities(text: str | None) -> dict[str, int | None]:
    """Parse `6` or `6+` into the least and the highest priority."""
    if text is None:
        return {"min_priority": None, "max_priority": None}
    match = re.fullmatch(r"([0-9]{1,2})(\+?)", text, re.ASCII)
    if match is None or int(match[1]) > MAX_PRIORITY:
        raise typer.BadParameter(f"--priority is 0 to 10, or 6+ for 6 and more, not {printable(text)!r}")
    return {"min_priority": int(match[1]), "max_priority": None if match[2] else int(match[1])}


def _show(hits: Sequence[Hit], ids: Mapping[str, str], total: int, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([_as_dict(hit) for hit in hits], indent=2))
    elif ids:
        _show_on_terminal(hits, ids)
        typer.echo(_count(len(hits), total))
        return
    elif hits:
        typer.echo("\t".join(COLUMNS))
        for hit in hits:
            typer.echo("\t".join(map(printable, (hit.email_id, _date(hit), hit.sender, hit.subject, hit.snippet))))
    if not hits:
        say("nothing found")
    elif len(hits) < total:
        say(_count(len(hits), total))


def _count(shown: int, total: int) -> str:
    return f"{shown:,} of {f'{total:,}' if total <= COUNTED else f'more than {COUNTED:,}'}"


def _as_dict(hit: Hit) -> dict[str, Any]:
    return {
        "email_id": hit.email_id,
        "date": hit.date.isoformat(),
        "sender": hit.sender,
        "subject": hit.subject,
        "snippet": hit.snippet,
        "attachments": list(hit.attachments),
    }


def _show_on_terminal(hits: Sequence[Hit], ids: Mapping[str, str]) -> None:
    """Print two or three lines for each message; an ID is never cut, for the next command needs it."""
    screen = Console()
    width = max(6, *(len(each) for each in ids.values()))
    sender = max(12, (screen.width - width - 16 - 6) * 2 // 5)
    subject = max(12, screen.width - width - 16 - 6 - sender)
    screen.print(
        Text(f"{'ID':<{width}}  {'Date (UTC)':<16}  {_cell('From', sender)}  Subject", style="bold"), soft_wrap=True
    )
    for hit in hits:
        # Text, not str: a subject must not be read as rich's markup.
        line = Text(f"{ids[hit.email_id]:<{width}}", style="bold")
        line.append(f"  {_date(hit)}  {_cell(hit.sender, sender)}  {_cell(hit.subject, subject).rstrip()}", "not bold")
        screen.print(line, soft_wrap=True)
        for text in (hit.snippet, f"attached: {', '.join(hit.attachments)}" if hit.attachments else ""):
            if text:
                screen.print(Text(f"  {_cell(text, max(20, screen.width - 2)).rstrip()}", style="dim"), soft_wrap=True)


def _cell(value: str, width: int) -> str:
    """Fit a text into so many columns of the terminal."""
    text = printable(value)
    return set_cell_size(text, width) if cell_len(text) <= width else f"{set_cell_size(text, width - 1)}…"


def _date(hit: Hit) -> str:
    return f"{hit.date:%Y-%m-%d %H:%M}"


def export(
    email_id: Annotated[
        str, typer.Argument(metavar="ID", help="The identity, or a beginning as `search` shows it.", show_default=False)
    ],
    eml: Annotated[bool, typer.Option("--eml", help="The raw message (the default).")] = False,
    record: Annotated[bool, typer.Option("--json", help="The record, attachments included.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A new file instead of the terminal.")] = None,
) -> None:
    """Write a delivered message to standard output or a file. Exit code 1 when it is not in the database.

    A terminal gets no control characters, for they are its sender's; a pipe or a file gets every byte as it came.

    Examples:
      email-ingestion export default:gm:1790000000000000001 --eml > message.eml
      email-ingestion export 17900000
      email-ingestion export default:gm:1790000000000000001 --json -o message.json
    """
    from email_ingestion.blobs import open_blobs  # noqa: PLC0415
    from email_ingestion.ledger.store import content_of, open_existing_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    if eml and record:
        raise typer.BadParameter("--eml and --json exclude each other")
    settings = load_settings()
    with closing(open_existing_ledger(settings.database_url)) as ledger:
        identity = pick_delivered(ledger, email_id)
        found = ledger.stored_facts(identity) if identity else None
        if found is None:
            say(f"{printable(email_id)} is not in the database: email-ingestion search finds identities.")
            raise typer.Exit(NEGATIVE)
        raw = content_of(found.raw_ref, ledger, open_blobs(settings.blob_url))
    audit_read(settings.log_dir, "export", 1, [identity or ""], file=str(output) if output else None)
    _write(_record(found, raw) if record else raw, output)


def _record(found: StoredFacts, raw: bytes) -> bytes:
    from email_ingestion.email_json import as_json  # noqa: PLC0415 - a search parses nothing
    from email_ingestion.parsing import parse  # noqa: PLC0415

    email = parse(found.envelope, raw)
    if found.priority is not None:
        email = replace(email, tags=found.tags, priority=found.priority)
    return json.dumps(as_json(email), indent=2).encode() + b"\n"


def _for_terminal(data: bytes) -> bytes:
    """Return the message as text that can only be read: its sender must not control the operator's terminal."""
    lines = data.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    return "\n".join(printable(line.expandtabs()) for line in lines).encode("utf-8", "replace")


def _write(data: bytes, output: Path | None) -> None:
    if output is None:
        sys.stdout.buffer.write(_for_terminal(data) if sys.stdout.isatty() else data)
        sys.stdout.buffer.flush()
        return
    if output.exists():
        raise OperationFailed(f"{output} exists already: name another file")
    try:
        with atomic_write(output) as file:
            file.write(data)
    except OSError as error:
        raise OperationFailed(f"cannot write {output}: {error.strerror}") from error
