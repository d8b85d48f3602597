"""Replays and purges dead letters with progress, after a look at what they died of; for the pages and for the API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from email_ingestion.ops.audit_log import audited_action
from email_ingestion.ops.mail_reads import record_read
from email_ingestion.settings import Settings
from email_ingestion.stream import DeadLetterQueue, RedisLink
from email_ingestion.stream.dead_letters import (
    DeadLetter,
    DeadLetterFilter,
    FailureGroup,
    count_letters,
    group_failures,
)
from email_ingestion.web.jobs import Job
from email_ingestion.web.live_system import LiveSystem
from email_ingestion.web.process_orders import OrderGiver
from email_ingestion.web.readings import Source

LOOK_SECONDS = 2.0
MOST_READ = 100_000  # letters that a look groups; the command line counts without end

LetterOrder = Literal["replay", "purge"]


@dataclass(frozen=True, slots=True)
class LetterOverview:
    """The dead letters of now: by fingerprint, and the newest of each; `is_cut` when there are more than were read."""

    total: int
    groups: list[FailureGroup]
    accounts: dict[str, dict[str, int]]  # by fingerprint
    is_cut: bool


class LetterOrders:
    """The look at the queue, and how orders are carried out. In `app.state.letter_orders`."""

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

    def select(self, only: DeadLetterFilter, ids: Collection[str] = ()) -> Iterator[DeadLetter]:
        """Yield the letters that match now; of these `ids` alone where some are given."""
        wanted = frozenset(ids)
        return (each for each in self.queue.letters() if only.matches(each) and (not wanted or each.id in wanted))

    def carry_out(
        self, order: LetterOrder, only: DeadLetterFilter, giver: OrderGiver, job: Job, ids: Collection[str] = ()
    ) -> str:
        """Replay or purge the letters that `select` finds; return what was done in a sentence."""
        job.begin("reading", 0)
        found = [each.id for each in self.select(only, ids)]
        if not found:
            return "There was none left."
        selected = {name: value for name, value in asdict(only).items() if value} | ({"ids": len(ids)} if ids else {})
        record = giver.audit_record(f"dlq {order}", filter=selected or {"all": True}, matched=len(found))
        done = _replay if order == "replay" else _purge
        try:
            return done(self._settings, self._system.link, found, record, job)
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
        record["via"],
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
