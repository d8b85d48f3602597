"""Pytest fixtures that run the Gmail sandbox, for tests of programs that read Gmail over IMAP with OAuth2.

Ask for the plugin in the `conftest.py` at the top of your tests:

    pytest_plugins = ["gmail_sandbox.pytest_plugin"]

It is no entry point of the group `pytest11`: pytest loads such a plugin into every test run wherever the package is
installed, also for those who only want the program, and this one imports an HTTP server.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gmail_sandbox.background import RunningSandbox, running_sandbox
from gmail_sandbox.server import SandboxSettings


@pytest.fixture(scope="session")
def gmail_sandbox_settings() -> SandboxSettings:
    """Return how the sandboxes of the other fixtures run: an empty mailbox, ports that the system chooses.

    Override it in a test module or a `conftest.py` for other credentials or for mail that is there from the start:

        @pytest.fixture(scope="session")
        def gmail_sandbox_settings():
            return SandboxSettings(mail="300", credentials=Credentials(user="ada@example.com"))
    """
    return SandboxSettings()


@pytest.fixture
def gmail_sandbox(gmail_sandbox_settings: SandboxSettings) -> Iterator[RunningSandbox]:
    r"""Run a sandbox for one test; it starts and stops in some hundredths of a second.

    def test_reads_the_inbox(gmail_sandbox):
        gmail_sandbox.deliver(b"Subject: hello\r\n\r\nworld\r\n", labels=["\\Inbox", "Work"])
        imap = imaplib.IMAP4(gmail_sandbox.imap_host, gmail_sandbox.imap_port)
        imap.authenticate("XOAUTH2", lambda _challenge: gmail_sandbox.xoauth2())
        assert imap.select("INBOX", readonly=True) == ("OK", [b"1"])
    """
    with running_sandbox(gmail_sandbox_settings) as running:
        yield running


@pytest.fixture(scope="session")
def gmail_sandbox_session(gmail_sandbox_settings: SandboxSettings) -> Iterator[RunningSandbox]:
    """Run one sandbox for the whole test run, for tests that only read a large mailbox.

    Mail and armed faults stay from one test to the next: a test that arms one calls `clear_faults()` at its end.
    """
    with running_sandbox(gmail_sandbox_settings) as running:
        yield running
