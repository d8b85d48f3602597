"""The control API as scripts and drills use it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import socket
import time
import urllib.request

import pytest

from gmail_sandbox import running_sandbox
from gmail_sandbox.faults import CATALOGUE


def test_delivery_as_json_and_as_raw_bytes(control, mail):
    status, first = control.call("POST", "/deliver", {"raw": mail(1).decode(), "labels": ["Work"], "flags": ["\\Seen"]})
    assert (status, first["uid"], first["mailbox"], first["merged"]) == (201, 1, "[Gmail]/All Mail", False)
    encoded = base64.b64encode(b"\0\xff").decode()
    when = "2026-01-02T03:04:05+00:00"
    _, second = control.call("POST", "/deliver", {"raw_base64": encoded, "internaldate": when})
    assert (second["size"], second["internaldate"], second["labels"]) == (2, when, ["\\Inbox"])
    status, _ = control.raw("POST", "/deliver?label=A&label=B", mail(3), "message/rfc822")
    assert status == 201
    _, again = control.call("POST", "/deliver", {"raw": mail(3).decode(), "labels": ["C"]})
    assert (again["merged"], again["labels"]) == (True, ["A", "B", "C"])


def test_messages_can_be_listed_read_relabelled_and_deleted(control, mail):
    msgids = [control.call("POST", "/deliver", {"raw": mail(n).decode()})[1]["msgid"] for n in range(3)]
    _, page = control.call("GET", "/messages?limit=2&offset=1")
    assert page["total"] == 3
    assert [message["msgid"] for message in page["messages"]] == sorted(msgids)[1:]
    chosen = page["messages"][0]
    _, raw = control.raw("GET", f"/messages/{chosen['msgid']}")
    assert hashlib.sha256(raw).hexdigest() == chosen["sha256"]
    change = {"add": ["Übung"], "remove": ["\\Inbox"]}
    assert control.call("POST", f"/messages/{chosen['msgid']}/labels", change)[1]["labels"] == ["Übung"]
    assert control.call("DELETE", f"/messages/{chosen['msgid']}")[0] == 200
    assert control.call("GET", "/messages")[1]["total"] == 2
    assert control.raw("GET", f"/messages/{chosen['msgid']}")[0] == 404


def test_faults_are_listed_armed_and_cleared(control):
    _, table = control.call("GET", "/faults")
    assert {kind["name"] for kind in table["catalogue"]} == set(CATALOGUE)
    assert all(kind["text"] for kind in table["catalogue"])
    status, _ = control.call("POST", "/faults", {"name": "throttled", "count": 3, "options": {"delay_ms": 1}})
    assert status == 201
    armed = control.call("GET", "/faults")[1]["armed"]
    assert armed == [{"name": "throttled", "count": 3, "options": {"delay_ms": 1}}]
    assert control.call("DELETE", "/faults/throttled")[0] == 200
    control.call("POST", "/faults", {"name": "trickle", "count": None})
    assert control.call("DELETE", "/faults")[0] == 200
    assert control.call("GET", "/faults")[1]["armed"] == []


@pytest.mark.parametrize(
    ("method", "path", "value"),
    [
        ("POST", "/deliver", {}),
        ("POST", "/deliver", {"raw_base64": "*"}),
        ("POST", "/deliver", {"raw": "x", "labels": "Inbox"}),
        ("POST", "/deliver", {"raw": "x", "internaldate": "yesterday"}),
        ("POST", "/faults", {"name": "no_such"}),
        ("POST", "/faults", {"name": "trickle", "options": {"no_such": 1}}),
        ("POST", "/faults", {"name": "trickle", "count": 0}),
        ("POST", "/faults", {"name": "trickle", "options": {"bytes": "1"}}),
        ("POST", "/faults", {"name": "half_open", "options": {"when": "fetch"}}),
        ("POST", "/faults", {"name": "uid_system_error"}),
        ("POST", "/deliver", {"raw": "x", "labels": ["a\r\nb"]}),
        ("POST", "/deliver", {"raw": "x", "flags": ["not an atom"]}),
        ("POST", "/faults", {"name": "uidvalidity_reset", "options": {"mailbox": "nope"}}),
        ("POST", "/account", {"language": "tlh"}),
        ("POST", "/account", {"max_folder_size": "many"}),
        ("GET", "/messages?limit=x", None),
        ("GET", "/messages/x", None),
        ("POST", "/faults", [1]),
    ],
)
def test_bad_input_is_answered_with_a_sentence(control, method, path, value):
    status, answer = control.call(method, path, value)
    assert status == 400
    assert len(answer["error"]) > 10


def test_account_can_be_dressed_up(control, client):
    _, facts = control.call("POST", "/account", {"language": "it"})
    assert facts["mailboxes"]["[Gmail]/Tutti i messaggi"]["uidvalidity"] == 12
    assert client.find_special_folder(b"\\All") == "[Gmail]/Tutti i messaggi"


def test_sessions_and_statistics_are_visible(control, client):
    client.select_folder("INBOX", readonly=True)
    status, body = control.raw("GET", "/sessions")
    assert status == 200
    assert b'"mailbox": "INBOX"' in body
    stats = control.call("GET", "/stats")[1]
    assert stats["connections"] == {"now": 1, "max": 1, "total": 1}
    assert stats["logins"] == 1
    assert control.call("GET", "/health")[1] == {"status": "alive"}
    assert control.call("GET", "/nowhere")[0] == 404


def test_a_web_page_cannot_drive_it_by_another_name(sandbox, control):
    request = urllib.request.Request(f"{sandbox.control_url}/stats", headers={"Host": "evil.example.org"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=5)


def test_a_body_may_come_in_chunks(sandbox):
    connection = http.client.HTTPConnection("127.0.0.1", sandbox.control_port, timeout=5)
    with contextlib.closing(connection):
        pieces = iter([b'{"raw": "Subject: in', b' pieces"}'])
        connection.request(
            "POST", "/deliver", body=pieces, headers={"Transfer-Encoding": "chunked"}, encode_chunked=True
        )
        assert connection.getresponse().status == 201
    assert [message.size for message in sandbox.messages()] == [18]


def test_a_too_large_body_is_refused_before_it_comes(sandbox):
    head = b"POST /deliver HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", sandbox.control_port), timeout=5) as client:
        client.sendall(head)
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


def test_it_stops_although_a_request_waits_for_its_answer():
    with running_sandbox() as sandbox:
        sandbox.arm_fault("token_hang")
        waiting = socket.create_connection(("127.0.0.1", sandbox.oauth_port), timeout=5)
        waiting.sendall(b"POST /token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        deadline = time.monotonic() + 5
        while not sandbox.with_stats(lambda stats: stats.token_requests) and time.monotonic() < deadline:
            time.sleep(0.01)
    with waiting, contextlib.suppress(ConnectionResetError):
        assert waiting.recv(100) == b""
