"""Compares a receiver with what it is owed by its digest tree: the root first, then only what differs.

    our tree, from the ledger ──┐
                                ├─ a node differs ─▶ ask for what is below ─▶ … ─▶ a few entries
    the receiver's, node by node┘

What a receiver has under another account or day than the database is a fault of its digest, and no gap: the comparison
ends then, and nothing is sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from email_ingestion.errors import SinkFailed
from email_ingestion.ledger.owed_mail import OwedMessage
from email_ingestion.ledger.store import Ledger
from email_ingestion.reconcile.consumer_report import ConsumerReport, SecondLook
from email_ingestion.reconcile.digest_tree import (
    DAY_DEPTH,
    DigestTree,
    NodeDigest,
    Path,
    bucket_of,
    day_of,
    digest_of,
    path_of,
)

STEP = 5_000  # messages of the ledger between two steps
_DIGITS = 64  # of a bucket's name
_HEXADECIMAL = "0123456789abcdef"
_LONGEST_NAME = 200  # characters of the name of an account
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
MAX_ASKED = 20_000  # nodes, beyond one for each message of ours: there is an end with a receiver that says anything
MAX_FOREIGN = 10_000  # entries of a node that we know nothing of, up to which they are asked for by name
Ask = Callable[[str], tuple[Any, int]]


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What a receiver says of a node: its digest, and either its children or its entries."""

    digest: NodeDigest
    children: dict[str, NodeDigest]
    entries: dict[str, str] | None

    @staticmethod
    def from_json(node: str, answered: Any) -> NodeAnswer:
        """Read an answer. Raises SinkFailed for one that is wrong in itself."""
        try:
            children = {str(name): _digest(each) for name, each in answered.get("children", {}).items()}
            entries = answered.get("entries")
            if entries is not None:
                entries = {str(name): str(value) for name, value in entries.items()}
            answer = NodeAnswer(_digest(answered), children, entries)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _wrong(node, "it has not the form that docs/completeness.md describes") from error
        below = digest_of(entries.items()) if entries is not None else NodeDigest()
        for child in children.values() if entries is None else ():
            below.add(child)
        if below != answer.digest:
            raise _wrong(node, "count or digest are not those of what is below it")
        return answer


class TreeComparison:
    """One comparison. `steps` yields often; then `report` has what was found."""

    def __init__(self, ledger: Ledger, sink: str, ask: Ask, resend: Callable[[list[str]], int] | None = None) -> None:
        """`ask` returns what the receiver says of a node, and how many bytes that took."""
        self.report = ConsumerReport(sink)
        self.looked_at = 0
        self._ledger = ledger
        self._ask = ask
        self._look = SecondLook(ledger, self.report, ledger.owed.now(), resend)
        self._tree = DigestTree()
        self._absent: list[Path] = []  # nodes of ours that the receiver has not
        self._wrong: dict[str, str] = {}
        self._extra: dict[str, Path] = {}
        self._asked = 0
        self._latest: tuple[Path, list[OwedMessage]] = ((), [])  # a day, and its mail

    def steps(self) -> Iterator[None]:
        """Compare. Raises SinkUnavailable, SinkFailed and OperationFailed when that is impossible."""
        started = monotonic()
        for message in self._ledger.owed.all_mail(self.report.sink):
            self._look.count_owed(message)
            self._tree.add(message)
            self.looked_at += 1
            if self.looked_at % STEP == 0:
                yield
        self._tree.finish()
        differing: list[Path] = [()]
        while differing:
            differing += self._look_below(differing.pop())
            yield
        self._settle()
        self.report.seconds = monotonic() - started

    def _look_below(self, path: Path) -> list[Path]:
        """Ask for a node; return the nodes below that differ."""
        node = _name(path)
        self._asked += 1
        if self._asked > MAX_ASKED + self.looked_at:
            raise _wrong(node, f"it has more below than {self._asked} questions find out")
        answered, size = self._ask(node)
        self.report.exchanged_bytes += size
        answer = NodeAnswer.from_json(node, answered)
        if answer.entries is not None:
            self._compare_entries(path, answer.entries)
            return []
        _check_names(path, answer.children)
        ours = self._children(path)
        theirs = {name: digest for name, digest in answer.children.items() if digest.count}
        self._absent += [(*path, name) for name in ours.keys() - theirs.keys()]
        differing = [name for name, digest in theirs.items() if ours.get(name) != digest]
        return list(self._worth_asking(path, differing, answer.children, ours))

    def _worth_asking(
        self, path: Path, names: list[str], theirs: dict[str, NodeDigest], ours: dict[str, NodeDigest]
    ) -> Iterator[Path]:
        for name in names:
            if name in ours or theirs[name].count <= MAX_FOREIGN:
                yield (*path, name)
            else:
                self.report.foreign += theirs[name].count

    def _children(self, path: Path) -> dict[str, NodeDigest]:
        if len(path) < DAY_DEPTH:
            return self._tree.children(path)
        found: dict[str, NodeDigest] = {}
        for each in self._below(path):
            if each.state == "delivered":
                digit = bucket_of(each.email_id)[len(path) - DAY_DEPTH]
                found.setdefault(digit, NodeDigest()).add(digest_of([(each.email_id, each.sha256)]))
        return found

    def _below(self, path: Path) -> Iterator[OwedMessage]:
        """Yield our messages below a node, whatever the state of their deliveries."""
        if len(path) < DAY_DEPTH:
            for day in list(self._tree.days(path)):
                yield from self._below(day)
            return
        day, prefix = path[:DAY_DEPTH], "".join(path[DAY_DEPTH:])
        if self._latest[0] != day:
            since = day_of(day)
            mail = self._ledger.owed.of_day(self.report.sink, since, day[0]) if since else ()
            self._latest = (day, list(mail))
        yield from (each for each in self._latest[1] if not prefix or bucket_of(each.email_id).startswith(prefix))

    def _compare_entries(self, path: Path, entries: dict[str, str]) -> None:
        ours = {each.email_id: each for each in self._below(path)}
        _check_case(path, entries, ours)
        for email_id, message in ours.items():
            if self._look.is_settled(message) and entries.get(email_id) != message.sha256:
                self._wrong[email_id] = "altered" if email_id in entries else "missing"
        self._extra |= dict.fromkeys(entries.keys() - ours.keys(), path)

    def _settle(self) -> None:
        """Count what was found, once it is certain that the receiver has its mail where it belongs."""
        known = self._ledger.owed.known(self.report.sink, self._extra)
        for email_id, message in known.items():
            right, found = path_of(message.account, message.internaldate), self._extra[email_id][:DAY_DEPTH]
            if right[: len(found)] != found:
                where = f"it has {email_id} under {_name(found)}, which belongs under {_name(right)}"
                raise _wrong(_name(self._extra[email_id]), f"{where}; a day is that of internaldate in UTC")
        for email_id, path in self._extra.items():
            self._look.find_extra(email_id, path[1] if len(path) > 1 else "")
        for email_id, what in self._wrong.items():
            self._look.suspect(email_id, what)
        for path in self._absent:
            for message in self._below(path):
                if self._look.is_settled(message):
                    self._look.suspect(message.email_id, "missing")
        self._look.finish()


def _check_names(path: Path, children: Mapping[str, NodeDigest]) -> None:
    """Refuse names that lead nowhere: a receiver could have us ask for ever."""
    if len(path) < DAY_DEPTH:
        if any(not name or "/" in name or len(name) > _LONGEST_NAME for name in children):
            raise _wrong(_name(path), "a node below it has no name, or one with a slash")
    elif len(path) >= DAY_DEPTH + _DIGITS or any(len(name) != 1 or name not in _HEXADECIMAL for name in children):
        raise _wrong(_name(path), f"below a day nodes are called by hexadecimal digits, at most {_DIGITS}")


def _check_case(path: Path, entries: Mapping[str, str], ours: Mapping[str, OwedMessage]) -> None:
    """Tell names in other letters than ours from mail that is missing: all of it would be sent again."""
    for email_id, sha256 in entries.items():
        known = ours.get(email_id)
        if known and sha256 != known.sha256 and sha256.lower() == known.sha256:
            raise _wrong(_name(path), f"it writes the SHA-256 of {email_id} in capitals")
        if known is None and email_id.lower() in ours:
            raise _wrong(_name(path), f"it writes {email_id} in capitals; an identity is kept as it was sent")


def _digest(answered: Any) -> NodeDigest:
    count, value = answered["count"], answered["digest"]
    if not isinstance(count, int) or count < 0 or not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(count)
    return NodeDigest(count, int(value, 16))


def _name(path: Path) -> str:
    """Return a node's name as it travels: the digits of a bucket are one word."""
    return "/".join((*path[:DAY_DEPTH], *filter(None, ["".join(path[DAY_DEPTH:])])))


def _wrong(node: str, what: str) -> SinkFailed:
    return SinkFailed(f"the webhook's digest of {node or 'the root'} is wrong: {what}")
