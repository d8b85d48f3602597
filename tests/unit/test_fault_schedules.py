"""The schedules of `bench.fault_schedules`, drawn, written, read and shrunk without running anything; its network."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from bench.fault_schedules.kinds import CHOICES
from bench.fault_schedules.network import Proxy
from bench.fault_schedules.schedule import FEWEST, LEAST_MESSAGES, MOST, Schedule, draw, read, shrink

SEEDS = range(300)
HANG = 0.3  # seconds after which something counts as not coming


def test_a_seed_always_draws_the_same_schedule():
    assert [draw(seed, CHOICES) for seed in SEEDS] == [draw(seed, CHOICES) for seed in SEEDS]
    assert len({str(draw(seed, CHOICES)) for seed in SEEDS}) == len(SEEDS)


def test_every_kind_in_every_manner_is_drawn_sooner_or_later():
    drawn = {(strike.kind, strike.manner) for seed in range(3_000) for strike in draw(seed, CHOICES).strikes}
    assert drawn == {(name, manner) for name, choice in CHOICES.items() for manner in choice.manners}


@pytest.mark.parametrize("database", ["", "sqlite", "postgresql"])
def test_each_fault_overlaps_with_one_before_it_and_fits_the_system(database: str):
    for seed in SEEDS:
        schedule = draw(seed, CHOICES, database=database)
        assert FEWEST <= len(schedule.strikes) <= MOST
        assert database in ("", schedule.database)
        until = schedule.strikes[0].at + schedule.strikes[0].lasts
        for strike in schedule.strikes:
            assert strike.at < until
            assert CHOICES[strike.kind].needs in ("", schedule.mailbox, schedule.database)
            until = max(until, strike.at + strike.lasts)


def test_what_is_printed_repeats_the_schedule():
    for seed in SEEDS:
        schedule = draw(seed, CHOICES)
        assert read(schedule.command.partition('"')[2].rstrip('"'), CHOICES) == schedule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gmail sqlite workers=1 messages=4 seed=1",
        "gmail oracle workers=1 messages=4 seed=1: redis_frozen@1+1",
        "gmail sqlite workers=x messages=4 seed=1: redis_frozen@1+1",
        "gmail sqlite workers=1 messages=4 seed=1: meteorite@1+1",
        "gmail sqlite workers=1 messages=4 seed=1: redis_network:slowly@1+1",
        "gmail sqlite workers=1 messages=4 seed=1: redis_frozen",
    ],
)
def test_a_schedule_that_cannot_be_read_is_refused_with_a_reason(text: str):
    with pytest.raises(ValueError, match=r"schedule|fault|needs one of"):
        read(text, CHOICES)


def test_a_failing_schedule_shrinks_to_the_two_faults_that_it_takes():
    big = next(each for each in (draw(seed, CHOICES) for seed in SEEDS) if len(each.strikes) == MOST)
    big = replace(big, workers=2)
    culprits = {big.strikes[1].kind, big.strikes[3].kind}
    asked: list[Schedule] = []

    def fails(candidate: Schedule) -> bool:
        asked.append(candidate)
        return culprits <= {strike.kind for strike in candidate.strikes} and candidate.messages >= 20

    small = shrink(big, fails)
    assert {strike.kind for strike in small.strikes} == culprits
    assert (small.workers, small.messages) == (1, 20)
    assert all(strike.lasts <= 1 for strike in small.strikes)
    assert len(asked) < 60  # each is a minute of a real system


def test_what_never_holds_shrinks_to_one_fault_and_what_never_fails_again_is_left_as_it_is():
    schedule = draw(1, CHOICES)
    small = shrink(schedule, lambda _: True)
    assert (len(small.strikes), small.messages) == (1, LEAST_MESSAGES)
    assert shrink(schedule, lambda _: False) == schedule


@pytest.fixture
def echo() -> Iterator[Proxy]:
    """A proxy before a server that says back what it hears."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(4096):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    proxy = Proxy(server.getsockname()[1])
    yield proxy
    proxy.close()
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def answer(connection: socket.socket, seconds: float = 10.0) -> bytes | None:
    """What comes back for a word; None when nothing does, empty when the connection is reset."""
    connection.settimeout(seconds)
    try:
        connection.sendall(b"word")
        return connection.recv(4)
    except TimeoutError:
        return None
    except OSError:
        return b""


def is_reset(proxy: Proxy) -> bool:
    """Whether a new connection is reset, at once or over its first word."""
    try:
        with connected(proxy) as connection:
            return answer(connection) == b""
    except OSError:
        return True


def test_a_cut_network_resets_what_is_connected_and_what_connects(echo: Proxy):
    with connected(echo) as before:
        assert answer(before) == b"word"
        echo.begin("cut")
        assert answer(before) == b""
        assert is_reset(echo)
        echo.end("cut")
    with connected(echo) as after:
        assert answer(after) == b"word"


def test_a_half_open_connection_stays_silent_and_a_new_one_works(echo: Proxy):
    with connected(echo) as before:
        assert answer(before) == b"word"
        echo.begin("half_open")
        with connected(echo) as during:
            assert answer(during) == b"word"
        echo.end("half_open")
        assert answer(before, HANG) is None


def test_what_stalls_comes_later(echo: Proxy):
    with connected(echo) as connection:
        assert answer(connection) == b"word"
        echo.begin("stall")
        assert answer(connection, HANG) is None
        echo.end("stall")
        connection.settimeout(10)
        assert connection.recv(4) == b"word"


def test_what_is_swallowed_never_comes(echo: Proxy):
    echo.begin("swallow")
    with connected(echo) as connection:
        assert answer(connection, HANG) is None
        echo.end("swallow")
        assert answer(connection, HANG) is None


def test_of_two_bad_networks_the_second_to_end_mends(echo: Proxy):
    echo.begin("cut")
    echo.begin("stall")
    echo.end("stall")
    assert is_reset(echo)
    echo.end("cut")
    with connected(echo) as connection:
        assert answer(connection) == b"word"
