"""What the scripted IMAP server (`odd_imap`) may answer to a command instead of what a sane one does."""

from __future__ import annotations

from typing import Any

from tests.servers.odd_mail import Reply, Text, to_bytes


class HangUp(Exception):
    """The conversation ends."""


def send(*lines: Text) -> Reply:
    """These lines, each with an end of line where it has none."""
    return lambda conversation, command: conversation.send(
        b"".join(line if line.endswith(b"\n") else line + b"\r\n" for line in map(to_bytes, lines)), command
    )


def send_raw(data: Text) -> Reply:
    """These bytes as they are."""
    return lambda conversation, command: conversation.send(to_bytes(data), command)


def ok(text: str = "done") -> Reply:
    return lambda conversation, command: conversation.end(command, f"OK {text}")


def no(text: str) -> Reply:
    return lambda conversation, command: conversation.end(command, f"NO {text}")


def bad(text: str) -> Reply:
    return lambda conversation, command: conversation.end(command, f"BAD {text}")


def bye(text: str) -> Reply:
    def say(conversation: Any, command: Any) -> None:
        conversation.send(to_bytes(f"* BYE {text}\r\n"))
        hang_up(conversation, command)

    return say


def hang_up(conversation: Any, _command: Any) -> None:
    raise HangUp


def hang(conversation: Any, command: Any) -> None:
    """Say nothing more, but keep the connection."""
    conversation.server.wait_until_stopped(conversation)
    hang_up(conversation, command)


def wait(seconds: float) -> Reply:
    return lambda conversation, _command: conversation.server.pause(seconds)


def trickle(data: Text, every: float) -> Reply:
    """One byte in so many seconds, and the connection is closed behind the last."""

    def say(conversation: Any, command: Any) -> None:
        for byte in to_bytes(data):
            conversation.send(bytes([byte]))
            conversation.server.pause(every)
        hang_up(conversation, command)

    return say


def flood(data: Text, most: int = 8 * 2**30) -> Reply:
    """The same bytes over and over, until the client hangs up or `most` bytes were sent."""

    def say(conversation: Any, _command: Any) -> None:
        block = to_bytes(data) * max(1, 65536 // len(data))
        for _ in range(max(1, most // len(block))):
            conversation.send(block)

    return say


def default(conversation: Any, command: Any) -> None:
    """What a sane server would answer."""
    conversation.answer(command)
