"""The pytest plugin, as the tests of another project use it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

CONFTEST = 'pytest_plugins = ["gmail_sandbox.pytest_plugin"]\n'


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    return pytester


def passes(project: pytest.Pytester, source: str, passed: int) -> None:
    project.makepyfile(source)
    result = project.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=passed)


def test_imaplib_reads_what_was_delivered(project):
    passes(
        project,
        r"""
        import imaplib


        def test_reads_the_inbox(gmail_sandbox):
            delivered = gmail_sandbox.deliver(b"Subject: hello\r\n\r\nworld\r\n", labels=["\\Inbox", "Work"])
            with imaplib.IMAP4(gmail_sandbox.imap_host, gmail_sandbox.imap_port, timeout=10) as imap:
                imap.authenticate("XOAUTH2", lambda _challenge: gmail_sandbox.xoauth2())
                assert imap.select("INBOX", readonly=True) == ("OK", [b"1"])
                _, answer = imap.uid("FETCH", "1", "(X-GM-MSGID X-GM-LABELS BODY.PEEK[])")
            assert answer[0][1] == b"Subject: hello\r\n\r\nworld\r\n"
            assert str(delivered.message.msgid).encode() in answer[0][0]
            (message,) = gmail_sandbox.messages()
            assert (message.flags, message.labels) == (frozenset(), {"\\Inbox", "Work"})


        def test_starts_with_an_empty_mailbox_each_time(gmail_sandbox):
            assert gmail_sandbox.messages() == []
        """,
        passed=2,
    )


def test_an_armed_fault_meets_the_client(project):
    passes(
        project,
        r"""
        import imaplib

        import pytest


        @pytest.fixture
        def imap(gmail_sandbox):
            imap = imaplib.IMAP4(gmail_sandbox.imap_host, gmail_sandbox.imap_port, timeout=10)
            yield imap
            imap.shutdown()


        def test_a_login_is_refused_until_the_fault_is_cleared(gmail_sandbox, imap):
            gmail_sandbox.arm_fault("web_login_required")
            with pytest.raises(imaplib.IMAP4.error, match="Please log in via your web browser"):
                imap.authenticate("XOAUTH2", lambda _challenge: gmail_sandbox.xoauth2())
            gmail_sandbox.clear_faults()
            imap.authenticate("XOAUTH2", lambda _challenge: gmail_sandbox.xoauth2())


        def test_a_session_expires(gmail_sandbox, imap):
            imap.authenticate("XOAUTH2", lambda _challenge: gmail_sandbox.xoauth2())
            gmail_sandbox.arm_fault("session_expiry", when="now")
            with pytest.raises(imaplib.IMAP4.abort):
                imap.noop()
        """,
        passed=2,
    )


def test_google_auth_refreshes_at_its_token_endpoint(project):
    passes(
        project,
        """
        from google.auth.transport.requests import Request
        from google.oauth2.credentials import Credentials


        def test_refreshes(gmail_sandbox):
            credentials = Credentials(
                token=None,
                refresh_token=gmail_sandbox.refresh_token(),
                token_uri=gmail_sandbox.token_uri,
                client_id=gmail_sandbox.client_id,
                client_secret=gmail_sandbox.client_secret,
            )
            credentials.refresh(Request())
            assert credentials.valid
        """,
        passed=1,
    )


def test_settings_can_be_overridden_and_a_session_shares_one_sandbox(project):
    passes(
        project,
        """
        import pytest

        from gmail_sandbox import Credentials, SandboxSettings


        @pytest.fixture(scope="session")
        def gmail_sandbox_settings():
            return SandboxSettings(mail="12", credentials=Credentials(user="ada@example.com"))


        def test_first(gmail_sandbox_session, gmail_sandbox):
            assert gmail_sandbox.user == gmail_sandbox_session.user == "ada@example.com"
            assert gmail_sandbox.imap_port != gmail_sandbox_session.imap_port
            gmail_sandbox_session.deliver(b"Subject: stays")


        def test_second(gmail_sandbox_session):
            assert len(gmail_sandbox_session.messages()) == 13
        """,
        passed=2,
    )


def test_the_plugin_is_loaded_only_where_it_is_asked_for(pytester):
    pytester.makepyfile("def test_it(gmail_sandbox): pass")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(errors=1)


def test_the_package_imports_nothing_of_the_program():
    program = (
        "import sys, gmail_sandbox.pytest_plugin; sys.exit(any(n.startswith('email_ingestion') for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
