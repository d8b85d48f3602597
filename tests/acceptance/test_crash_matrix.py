"""The short form of the crash matrix: a round of every quick fault; and proof that its law can be broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.crash_matrix.catalogue import FAULTS, Fault
from bench.crash_matrix.databases import KINDS, SQLITE, missing
from bench.crash_matrix.law import Copy, Found, judge
from bench.crash_matrix.published import Line, line_of, lines_in, table
from bench.crash_matrix.report import broken, commit_of_tree, page
from bench.crash_matrix.rounds import Row, play
from bench.crash_matrix.truth import Truth
from bench.crash_matrix.world import World, running_world

ROUNDS = 1
MESSAGES = 100
SEED = 20260101


class Stage:
    """One world for all faults that leave it as it was, because starting one takes longer than a round."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._world: World | None = None
        self._number = 0

    def world(self) -> World:
        if self._world is None:
            self._number += 1
            self._world = self._stack.enter_context(running_world(self._folder / str(self._number)))
        return self._world

    def clear(self) -> None:
        """A world in which something is wrong is of no use to the next fault."""
        self._world = None
        self._stack.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("matrix"))
    yield made
    made.clear()


def _rows() -> Iterator[object]:
    """The quick ones always, on SQLite; all others with --soak."""
    for fault in FAULTS.values():
        for kind in fault.databases:
            long = () if fault.quick and kind == SQLITE else pytest.mark.soak
            yield pytest.param(fault, kind, id=fault.name if kind == SQLITE else f"{fault.name}-{kind}", marks=long)


@pytest.mark.parametrize(("fault", "kind"), list(_rows()))
def test_a_fault_loses_nothing_and_doubles_nothing(fault: Fault, kind: str, stage: Stage, tmp_path: Path):
    if obstacle := fault.obstacle() or missing(kind):
        pytest.skip(obstacle)
    if fault.own_world or kind != SQLITE:
        stage.clear()
        with running_world(tmp_path, kind) as world, fault.surroundings(world):
            row = play(fault, world, rounds=ROUNDS, messages=MESSAGES, seed=SEED)
    else:
        row = play(fault, stage.world(), rounds=ROUNDS, messages=MESSAGES, seed=SEED)
    if not row.good:
        stage.clear()
    assert not broken([row])
    assert row.dead == 0


GOOD = Found(
    mailbox={"a": "1", "b": "2", "c": "3"},
    seen=(),
    database=[Copy("a", "1")],
    dead=[Copy("b", "2")],
    queued=[Copy("c", "3")],
)


def _changed(**parts) -> Found:
    return dataclasses.replace(GOOD, **parts)


def test_the_law_holds_when_every_message_has_its_place():
    assert judge(GOOD).holds


def test_a_message_that_is_committed_but_not_yet_acknowledged_breaks_nothing():
    assert judge(_changed(queued=[Copy("c", "3"), Copy("a", "1")])).holds


@pytest.mark.parametrize("place", ["database", "dead", "queued"])
def test_a_lost_message_breaks_the_law(place: str):
    verdict = judge(_changed(**{place: []}))
    assert (len(verdict.lost), verdict.holds) == (1, False)


@pytest.mark.parametrize(
    ("place", "copies"),
    [
        ("database", [Copy("a", "1"), Copy("a", "1")]),
        ("database", [Copy("a", "1"), Copy("a'", "1")]),
        ("database", [Copy("a", "1"), Copy("b", "2")]),
        ("dead", [Copy("b", "2"), Copy("b", "2")]),
    ],
    ids=["one identity twice", "one content under two identities", "also a dead letter", "two dead letters"],
)
def test_a_doubled_message_breaks_the_law(place: str, copies: list[Copy]):
    verdict = judge(_changed(**{place: copies}))
    assert verdict.doubled
    assert not verdict.holds


def test_two_messages_of_equal_content_on_the_server_are_two_messages():
    equal = Found({"a": "1", "b": "1"}, (), [Copy("a", "1"), Copy("b", "1")], [], [])
    assert judge(equal).holds


@pytest.mark.parametrize("place", ["database", "dead", "queued"])
def test_an_altered_message_breaks_the_law(place: str):
    copies = [Copy(copy.email_id, "other") for copy in getattr(GOOD, place)]
    verdict = judge(_changed(**{place: copies}))
    assert verdict.altered == (copies[0].email_id,)
    assert not verdict.holds


def test_a_message_that_is_nowhere_on_the_server_breaks_the_law():
    verdict = judge(_changed(database=[Copy("a", "1"), Copy("x", "9")]))
    assert (verdict.invented, verdict.holds) == (("x",), False)


def test_a_flag_set_on_the_server_breaks_the_law():
    assert not judge(_changed(seen=["a"])).holds


def test_the_report_names_what_was_lost_and_what_was_not_run():
    fault = FAULTS["redis_flushed"]
    lost = Row(fault, rounds=1, messages=3, verdict=judge(_changed(database=[])), recoveries=[1.5])
    skipped = Row(FAULTS["clock_step"], skipped="there is no clock")
    assert broken([lost, skipped]) == ["redis_flushed on SQLite: 1 lost, such as a"]
    lines = [line_of(row, "abc1234") for row in (lost, skipped)]
    assert "| SQLite | abc1234 | 1 | 3 | 1 | 0 | 0 | 0 | 0 | - | 1.5 s | 1.5 s | - |" in table(lines)
    assert "there is no clock" in _page([lost, skipped], [])


def test_a_page_keeps_the_lines_of_what_was_not_played_again(tmp_path: Path):
    played = [Row(FAULTS[name], kind, rounds=2, messages=9) for name in ("signals", "imap_drop") for kind in KINDS]
    path = tmp_path / "page.md"
    path.write_text(_page(played, []))
    assert lines_in(path) == [line_of(row, commit_of_tree()) for row in played]
    again = Row(FAULTS["signals"], "postgresql", rounds=7, messages=70)
    path.write_text(_page([again], lines_in(path)))
    assert [line.number("Rounds") for line in lines_in(path)] == [2, 7, 2, 2]
    assert "13 times, while 97 messages" in path.read_text()


def _page(rows: list[Row], kept: list[Line]) -> str:
    return page(rows, kept, order=list(FAULTS), seed=3, seconds=60)


def test_what_no_source_told_for_long_is_a_failure():
    silent = Truth()
    silent.silent |= {"alerts": 90.0, "metrics": 29.0, "/status": 31.0}
    truth = Truth()
    truth.merge(silent)
    assert truth.complaints() == ["mail stood still for 31 s, and /status told no reason"]
