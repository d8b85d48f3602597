"""Dead letters by what they died of; a preview of a replay or a purge, and then the order itself, with progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from email_ingestion.ops.audit_log import audited_action
from email_ingestion.ops.mail_reads import record_read
from email_ingestion.ops.redaction import redact
from email_ingestion.settings import Settings
from email_ingestion.stream import DeadLetterQueue, RedisLink
from email_ingestion.stream.dead_letters import (
    DeadLetter,
    DeadLetterFilter,
    FailureGroup,
    count_letters,
    group_failures,
)
from email_ingestion.web.flow_judgement import DEAD_LETTERS
from email_ingestion.web.jobs import Job
from email_ingestion.web.live_system import LiveSystem
from email_ingestion.web.pages.orders import begin_order, refuse_order
from email_ingestion.web.pages.runbooks import section_link
from email_ingestion.web.readings import Source
from email_ingestion.web.rendering import render
from email_ingestion.web.sessions import CurrentOperator, CurrentUser, WebUser

PATH = "/dead-letters"
LOOK_SECONDS = 2.0
WAIT_SECONDS = 0.7
SHOWN = 50  # letters of a group
MOST_READ = 100_000  # letters that a look groups; the command line counts without end
REFRESH_SECONDS = 30

Order = Literal["replay", "purge"]

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class LetterOverview:
    """The dead letters of now: by fingerprint, and the newest of each; `is_cut` when there are more than were read."""

    total: int
    groups: list[FailureGroup]
    accounts: dict[str, dict[str, int]]  # by fingerprint
    is_cut: bool


class LetterPages:
    """What these pages share: the look at the queue, and how orders are carried out. In `app.state.letter_pages`."""

    def __init__(self, settings: Settings, system: LiveSystem) -> None:
        self._settings = settings
        self._system = system
        self.overview: Source[LetterOverview] = Source("Redis", self._look, LOOK_SECONDS)

    @property
    def queue(self) -> DeadLetterQueue:
        """The dead letters."""
        return DeadLetterQueue(self._system.link)

    def _look(self) -> LetterOverview:
        accounts: dict[str, Counter[str]] = {}
        count = 0

        def letters() -> Iterator[DeadLetter]:
            nonlocal count
            for letter in islice(self.queue.letters(), MOST_READ):
                count += 1
                accounts.setdefault(letter.fingerprint, Counter())[letter.account] += 1
                yield letter

        groups = group_failures(letters())
        return LetterOverview(count, groups, {key: dict(each) for key, each in accounts.items()}, count >= MOST_READ)

    def carry_out(self, order: Order, fingerprint: str, account: str, user: WebUser, job: Job) -> str:
        """Replay or purge the letters that match now; return what was done in a sentence."""
        conditions = DeadLetterFilter(fingerprint=fingerprint or None, account=account or None)
        job.begin("reading", 0)
        ids = [each.id for each in self.queue.letters() if conditions.matches(each)]
        if not ids:
            return "There was none left."
        selected: dict[str, Any] = {
            name: value for name, value in (("fingerprint", fingerprint), ("account", account)) if value
        }
        record = user.audit_record(f"dlq {order}", filter=selected or {"all": True}, matched=len(ids))
        done = _replay if order == "replay" else _purge
        try:
            return done(self._settings, self._system.link, ids, record, job)
        finally:
            self.overview.forget()


def _replay(settings: Settings, link: RedisLink, ids: list[str], record: dict[str, Any], job: Job) -> str:
    from email_ingestion.app.dead_letter_orders import (  # noqa: PLC0415 - a look needs no mail server
        fetch_lost,
        replay_letters,
    )

    with audited_action(settings.log_dir, record) as outcome:
        job.begin("looking for bytes that the blob store lacks", len(ids))
        lost = fetch_lost(settings, link, ids)
        whole = [letter_id for letter_id in ids if letter_id not in lost]
        job.begin("putting back", len(whole))
        moved = replay_letters(DeadLetterQueue(link), whole, outcome, job.advance)
        outcome["lost"] = len(lost)
    stay = f" {count_letters(len(lost))} stay: nobody has their bytes." if lost else ""
    gone = f" {len(whole) - moved} were replayed or purged by somebody else meanwhile." if moved < len(whole) else ""
    return f"{count_letters(moved)} put back into the stream.{gone}{stay}"


def _purge(settings: Settings, link: RedisLink, ids: list[str], record: dict[str, Any], job: Job) -> str:
    from email_ingestion.app.dead_letter_orders import (  # noqa: PLC0415 - a look needs no database
        MOST_NAMED,
        export_letters,
        export_path,
        purging_ledger,
        remove_letters,
    )

    path, queue = export_path(settings), DeadLetterQueue(link)
    record_read(
        settings.log_dir,
        "web",
        record["user"],
        "dlq purge",
        messages=len(ids),
        letters=ids[:MOST_NAMED],
        file=str(path),
    )
    with audited_action(settings.log_dir, {**record, "file": str(path)}) as outcome, purging_ledger(settings) as ledger:
        job.begin("exporting", len(ids))
        exported = export_letters(queue, ids, path, record["filter"], job.advance)
        outcome |= {"exported": len(exported.letters), "sha256": exported.sha256}
        job.begin("deleting", len(exported.letters))
        deleted = remove_letters(queue, ledger, exported, path, outcome, advance=job.advance)
    return f"{count_letters(deleted)} deleted; they are in {path}."


@router.get(PATH)
def groups(request: Request, user: CurrentUser) -> Response:
    """Show the groups."""
    pages: LetterPages = request.app.state.letter_pages
    reading = pages.overview.get(WAIT_SECONDS)
    found = reading.value
    rows = [(each, redact(each.error)) for each in found.groups] if found else []
    help_link = section_link(DEAD_LETTERS)
    return render(
        request, "dead_letters.html", user, refresh=REFRESH_SECONDS, reading=reading, rows=rows, help_link=help_link
    )


@router.get(PATH + "/group/{fingerprint:path}")
def group(request: Request, user: CurrentUser, fingerprint: str) -> Response:
    """Show one group: its error, its sample, its letters, and what may be done with them."""
    pages: LetterPages = request.app.state.letter_pages
    reading = pages.overview.get(WAIT_SECONDS)
    known = reading.value.groups if reading.value else []
    found = next((each for each in known if each.fingerprint == fingerprint), None)
    letters, letters_problem = _first_letters(pages, fingerprint) if found else ([], "")
    accounts = reading.value.accounts.get(fingerprint, {}) if reading.value else {}
    return render(
        request,
        "dead_letter_group.html",
        user,
        fingerprint=fingerprint,
        reading=reading,
        group=found,
        error=redact(found.error) if found else "",
        letters=letters,
        letters_problem=letters_problem,
        accounts=accounts,
        help_link=section_link(DEAD_LETTERS),
        shown=SHOWN,
    )


def _first_letters(pages: LetterPages, fingerprint: str) -> tuple[list[DeadLetter], str]:
    """Return the first letters of a group, or why they cannot be read within the time of a page."""
    wanted = DeadLetterFilter(fingerprint=fingerprint)

    def look() -> list[DeadLetter]:
        return list(islice(filter(wanted.matches, pages.queue.letters()), SHOWN))

    reading = Source("Redis", look, 0.0).get(WAIT_SECONDS)
    return reading.value or [], reading.problem


@router.get(PATH + "/preview")
def preview(
    request: Request,
    user: CurrentUser,
    order: Order,
    fingerprint: Annotated[str, Query(max_length=200)] = "",
    account: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """Say what an order would do, and ask."""
    pages: LetterPages = request.app.state.letter_pages
    reading = pages.overview.get(WAIT_SECONDS)
    found = [each for each in reading.value.groups if fingerprint in {"", each.fingerprint}] if reading.value else []
    accounts: Counter[str] = Counter()
    for each in found:
        accounts.update(reading.value.accounts.get(each.fingerprint, {}) if reading.value else {})
    count = accounts[account] if account else accounts.total()
    return render(
        request,
        "dead_letter_preview.html",
        user,
        order=order,
        fingerprint=fingerprint,
        account=account,
        reading=reading,
        groups=found,
        accounts=dict(accounts),
        count=count,
        folder=request.app.state.entry.settings.backup_dir,
    )


@router.post(PATH + "/{order}")
def give_order(
    request: Request,
    user: CurrentOperator,
    order: Order,
    *,
    fingerprint: Annotated[str, Form(max_length=200)] = "",
    account: Annotated[str, Form(max_length=100)] = "",
    everything: Annotated[str, Form()] = "",
) -> Response:
    """Begin a replay or a purge, and lead to its progress."""
    pages: LetterPages = request.app.state.letter_pages
    action = f"dlq {order}"
    if not (fingerprint or account or everything):
        reason = "all of them cannot be meant by silence: choose a group, or say that all are meant"
        return refuse_order(request, user, reason, action=action)
    which = f"of group {fingerprint}" if fingerprint else "all dead letters"
    title = f"{order.capitalize()} {which}" + (f" of account {account}" if account else "")

    def work(job: Job) -> str:
        return pages.carry_out(order, fingerprint, account, user, job)

    return begin_order(request, user, title, PATH, work, action=action)
