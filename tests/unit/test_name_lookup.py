"""A resolver that is slow holds nobody up for longer than a few seconds, and is not away."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from email_ingestion import name_lookup
from tests.servers.processes import until

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 993))]


class Resolver:
    """Answers when it is let; `asked` are the names."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.free = threading.Event()
        self.error: Exception | None = None

    def __call__(self, host: str, *_: Any) -> list[Any]:
        self.asked.append(host)
        assert self.free.wait(60)
        if self.error:
            raise self.error
        return FOUND


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", socket.getaddrinfo)
    monkeypatch.setattr(name_lookup, "_ask_system", made)
    monkeypatch.setattr(name_lookup, "_open", {})
    name_lookup.limit_lookups()
    yield made
    made.free.set()


def test_a_name_that_is_found_late_is_there_for_the_next_one_who_asks(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_lookup, "SECONDS", 0.05)
    with pytest.raises(socket.gaierror, match=r"no answer within .* where imap.example.com is: getent hosts"):
        socket.create_connection(("imap.example.com", 993))
    resolver.free.set()
    monkeypatch.setattr(name_lookup, "SECONDS", 60.0)
    assert socket.getaddrinfo("imap.example.com", 993, 0, socket.SOCK_STREAM) == FOUND
    assert resolver.asked == ["imap.example.com"]  # the question that hung is not asked again
    assert socket.getaddrinfo("imap.example.com", 993, 0, socket.SOCK_STREAM) == FOUND
    assert resolver.asked == ["imap.example.com"] * 2  # an answer serves once: addresses change


def test_a_question_that_hangs_does_not_hang_the_next_one(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the first was lost, and the resolver waits for it for half a minute."""
    monkeypatch.setattr(name_lookup, "SECONDS", 0.05)
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("imap.example.com", 993)
    monkeypatch.setattr(name_lookup, "_ask_system", lambda *_: FOUND)
    (question,) = name_lookup._open.values()
    question._ask = lambda: FOUND
    until(lambda: _asked("imap.example.com"), "the second question is answered")
    assert not resolver.free.is_set()


def _asked(name: str) -> bool:
    try:
        return socket.getaddrinfo(name, 993) == FOUND
    except socket.gaierror:
        return False


def test_a_late_answer_is_not_kept_for_ever(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_lookup, "SECONDS", 0.05)
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("imap.example.com", 993)
    resolver.free.set()
    monkeypatch.setattr(name_lookup, "KEPT_SECONDS", -1.0)
    until(lambda: all(each.is_over for each in name_lookup._open.values()), "it has been answered")
    monkeypatch.setattr(name_lookup, "SECONDS", 60.0)
    assert socket.getaddrinfo("imap.example.com", 993) == FOUND
    assert len(resolver.asked) == 2


def test_what_the_resolver_says_is_passed_on(resolver: Resolver) -> None:
    resolver.free.set()
    resolver.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(socket.gaierror, match="not known"):
        socket.getaddrinfo("imap.example.com", 993)


@pytest.mark.parametrize("host", ["192.0.2.1", "::1", "fe80::1%lo", "", None])
def test_an_address_is_no_name_and_needs_no_thread(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, host: str | None
) -> None:
    monkeypatch.setattr(name_lookup, "_Question", lambda *_: pytest.fail("it asks in a thread"))
    resolver.free.set()
    assert socket.getaddrinfo(host, 993) == FOUND


def test_without_a_thread_to_spare_the_name_is_asked_for_all_the_same(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_to_spare(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(name_lookup._Question, "ask", none_to_spare)
    resolver.free.set()
    assert socket.getaddrinfo("imap.example.com", 993) == FOUND
