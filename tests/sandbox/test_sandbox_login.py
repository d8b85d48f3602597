"""Logging in as Gmail lets and does not let one."""

from __future__ import annotations

import base64
import datetime as dt
import json
import ssl

import imapclient
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gmail_sandbox import Credentials, SandboxSettings, running_sandbox

CHALLENGE = {"status": "400", "schemes": "Bearer", "scope": "https://mail.google.com/"}


def test_greeting_and_first_capabilities_are_gmails(wire):
    assert wire.greeting.startswith(b"* OK Gimap ready for requests from 127.0.0.1 ")
    lines = wire.run(b"CAPABILITY")
    assert (
        lines[0].split()[2:]
        == (
            b"IMAP4rev1 UNSELECT IDLE NAMESPACE QUOTA ID XLIST CHILDREN X-GM-EXT-1 XYZZY SASL-IR AUTH=XOAUTH2 "
            b"AUTH=PLAIN AUTH=PLAIN-CLIENTTOKEN AUTH=OAUTHBEARER"
        ).split()
    )
    assert lines[1].startswith(b"t OK Thats all she wrote! ")


def test_login_with_initial_response(sandbox, wire, xoauth2):
    capability, done = wire.run(b"AUTHENTICATE XOAUTH2 " + xoauth2(sandbox.user, sandbox.access_token()))
    assert capability.startswith(b"* CAPABILITY ")
    assert b"CONDSTORE" in capability
    assert b"APPENDLIMIT=35651584" in capability
    assert done == b"t OK demo@example.com authenticated (Success)"


def test_login_without_initial_response_gets_an_empty_challenge(sandbox, wire, xoauth2):
    wire.send(b"t AUTHENTICATE XOAUTH2\r\n")
    assert wire.line() == b"+ "
    wire.send(xoauth2(sandbox.user, sandbox.access_token()) + b"\r\n")
    assert wire.until(b"t ")[-1].startswith(b"t OK")


@pytest.mark.parametrize("reply", [b"", b"*"])
def test_bad_token_gets_the_json_challenge_then_no(sandbox, wire, reply, xoauth2):
    wire.send(b"t AUTHENTICATE XOAUTH2 " + xoauth2(sandbox.user, "ya29.wrong") + b"\r\n")
    challenge = wire.line()
    assert json.loads(base64.b64decode(challenge.removeprefix(b"+ "))) == CHALLENGE
    wire.send(reply + b"\r\n")
    assert wire.line() == b"t NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)"


def test_token_of_another_user_is_refused(sandbox, wire, xoauth2):
    wire.send(b"t AUTHENTICATE XOAUTH2 " + xoauth2("other@example.com", sandbox.access_token()) + b"\r\n")
    assert wire.line().startswith(b"+ ")
    wire.send(b"\r\n")
    assert wire.line().startswith(b"t NO [AUTHENTICATIONFAILED]")


def test_token_without_the_mail_scope_fails_the_lookup(sandbox, wire, xoauth2):
    token = sandbox.access_token("https://www.googleapis.com/auth/gmail.readonly")
    wire.send(b"t AUTHENTICATE XOAUTH2 " + xoauth2(sandbox.user, token) + b"\r\n")
    challenge = json.loads(base64.b64decode(wire.line().removeprefix(b"+ ")))
    assert challenge == {"status": "invalid_request", "scope": "https://mail.google.com/"}
    wire.send(b"\r\n")
    assert wire.line().startswith(b"t NO Lookup failed ")


def test_imapclient_logs_in_both_oauth_ways(sandbox, connect):
    for login in ("oauth2_login", "oauthbearer_login"):
        client = connect(login=False)
        getattr(client, login)(sandbox.user, sandbox.access_token())
        assert client.has_capability("X-GM-EXT-1")
        assert client.has_capability("MOVE")


def test_imapclient_sees_a_refusal(sandbox, connect):
    with pytest.raises(imapclient.exceptions.LoginError, match="Invalid credentials"):
        connect(login=False).oauth2_login(sandbox.user, "nonsense")


def test_app_password_lets_in_with_or_without_its_spaces(sandbox, connect):
    for password in ("abcd efgh", "abcdefgh"):
        assert connect(login=False).login(sandbox.user, password)
    assert connect(login=False).plain_login(sandbox.user, "abcdefgh")
    with pytest.raises(imapclient.exceptions.LoginError, match="Invalid credentials"):
        connect(login=False).login(sandbox.user, "wrong")


def test_passwords_are_refused_by_default(wire_to):
    with running_sandbox() as sandbox:
        wire = wire_to(sandbox)
        answer = wire.run(b'LOGIN demo@example.com "pass"')[-1]
    assert answer == (
        b"t NO [ALERT] Application-specific password required: "
        b"https://support.google.com/accounts/answer/185833 (Failure)"
    )


def test_session_ends_with_its_access_token(wire_to):
    with running_sandbox(SandboxSettings(credentials=Credentials(token_life=0.2))) as sandbox:
        wire = wire_to(sandbox)
        wire.login(sandbox)
        assert wire.rest() == b"* BYE Session expired, please login again.\r\n"


def test_sixteenth_connection_is_one_too_many(wire_to):
    with running_sandbox() as sandbox:
        wires = [wire_to(sandbox) for _ in range(16)]
        answers = [wire.login(sandbox)[-1] for wire in wires]
    assert [answer[:4] for answer in answers[:15]] == [b"t OK"] * 15
    assert answers[15] == b"t NO [ALERT] Too many simultaneous connections. (Failure)"


def test_commands_need_their_state(wire, sandbox):
    assert wire.run(b"SELECT INBOX")[-1].startswith(b"t BAD")
    wire.login(sandbox)
    assert wire.run(b"FETCH 1 FLAGS")[-1].startswith(b"t BAD")
    wire.run(b"SELECT INBOX")
    assert wire.run(b"ENABLE CONDSTORE")[-1] == b"t BAD ENABLE not allowed now."
    wire.send(b"{} NOOP\r\n")
    assert wire.line().startswith(b"* BAD invalid tag")
    assert wire.run(b"NONSENSE")[-1].startswith(b"t BAD")
    assert wire.run(b"LOGOUT") == [b"* BYE LOGOUT Requested", b"t OK 73 good day (Success)"]


def test_id_and_namespace(client, sandbox, mail):
    facts = client.id_({"name": "test", "contact": "ops@example.com"})[0]
    assert facts[:4] == (b"name", b"GImap", b"vendor", b"Google, Inc.")
    assert client.namespace().personal == (("", "/"),)
    sandbox.deliver(mail(1))


def test_literals_stand_wherever_a_string_may(wire):
    wire.send(b"t LOGIN {16}\r\n")
    assert wire.line() == b"+ go ahead"
    wire.send(b"demo@example.com {9+}\r\nabcd efgh\r\n")
    assert wire.until(b"t ")[-1] == b"t OK demo@example.com authenticated (Success)"
    wire.send(b"t EXAMINE {5+}\r\nINBOX\r\n")
    assert wire.until(b"t ")[-1].startswith(b"t OK [READ-ONLY]")


def test_large_non_synchronising_literal_is_bad(known_wire):
    known_wire.send(b"t APPEND INBOX {4097+}\r\n")
    assert known_wire.line().startswith(b"t BAD")


def certificate(folder):
    """A file with a key and a certificate for localhost that nobody signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "both.pem"
    file.write_bytes(made.public_bytes(encoding) + pem)
    return file


def test_tls_with_a_certificate(tmp_path):
    file = certificate(tmp_path)
    with running_sandbox(SandboxSettings(tls_certificate=file)) as sandbox:
        context = ssl.create_default_context(cafile=str(file))
        client = imapclient.IMAPClient("localhost", port=sandbox.imap_port, ssl_context=context, timeout=5)
        assert client.oauth2_login(sandbox.user, sandbox.access_token())
        client.logout()
