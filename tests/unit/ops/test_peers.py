"""The one judgement of which processes should run and do not."""

from __future__ import annotations

import pytest

from email_ingestion.ops.peers import missing_processes
from email_ingestion.ops.status_records import Component, Peer

NOW = 1000.0


def peer(component: Component, name: str, *, alive: bool, seen: float | None = None, **more: object) -> Peer:
    return Peer(component, name, 7, alive, None, None, seen, **more)  # type: ignore[arg-type]


PRODUCER = peer("producer", "p", alive=True)
LIVING = peer("worker", "w-2", alive=True)


def names(*peers: Peer, unattended: float = 0.0, count_pid_files: bool = False) -> list[str]:
    missing = missing_processes(peers, NOW, unattended_seconds=unattended, count_pid_files=count_pid_files)
    return [each.name for each in missing]


def test_nothing_is_missing_where_all_live() -> None:
    assert names(PRODUCER, LIVING, unattended=60) == []
    assert names() == []


@pytest.mark.parametrize("seen", [None, NOW - 1, NOW - 100_000])
def test_a_dead_process_is_missing_while_no_other_of_its_kind_lives(seen: float | None) -> None:
    assert names(PRODUCER, peer("worker", "w-1", alive=False, seen=seen), unattended=60) == ["w-1"]
    assert names(LIVING, peer("producer", "p", alive=False, seen=seen)) == ["p"]


def test_a_dead_process_is_forgotten_once_it_is_replaced_and_nothing_pends_in_its_name() -> None:
    assert names(PRODUCER, LIVING, peer("worker", "w-1", alive=False, seen=NOW - 5)) == ["w-1"]
    assert names(PRODUCER, LIVING, peer("worker", "w-1", alive=False, seen=NOW - 60)) == []
    assert names(PRODUCER, LIVING, peer("worker", "w-1", alive=False, seen=NOW - 60, pending=1)) == ["w-1"]


def test_a_pid_file_without_its_process_counts_where_it_is_asked_for() -> None:
    dead = peer("worker", "worker", alive=False, pid_file=True)
    assert names(PRODUCER, LIVING, dead) == []
    assert names(PRODUCER, LIVING, dead, count_pid_files=True) == ["worker"]


def test_mail_that_waits_misses_a_worker() -> None:
    assert names(PRODUCER, unattended=60) == ["worker"]
    assert names(PRODUCER, unattended=1) == []  # a worker restarts
