"""The read API of a real web process, as a program sees it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import ssl
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from ipaddress import ip_address
from pathlib import Path

import httpx
import jsonschema
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.servers.api import Api, api, delivered, letter, token
from tests.servers.ports import free_port
from tests.servers.processes import ROOT, Place, Running, place

SCHEMA = json.loads((ROOT / "config" / "schemas" / "email.v1.json").read_text())
LETTERS = 30
OTHERS = 8
THREAD = 1_790_000_000_000_000_103
PAGE = b"<script>alert(1)</script>"


def mail(subject: str, text: str = "Hello", sender: str = "Ann <ann@example.org>", **fields: str) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = sender, "Bob <bob@example.com>", subject
    for name, value in fields.items():
        made[name.replace("_", "-")] = value
    made.set_content(text)
    return made


def with_file(name: str, content: bytes, kind: str = "application/octet-stream") -> bytes:
    made = mail(f"file {name}")
    made.add_attachment(content, *kind.split("/"), filename=name)
    return made.as_bytes()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place whose Redis is down, with mail of two accounts."""
    with place(
        tmp_path_factory.mktemp("api"), f"redis://127.0.0.1:{free_port()}/0", WEB_REQUESTS_PER_MINUTE=60_000
    ) as it:
        (it.folder / "config").mkdir()
        (it.folder / "config" / "settings.toml").write_text(
            '[[accounts]]\nname = "default"\n[[accounts]]\nname = "work"\n'
        )
        delivered(it, [letter(number, mail(f"letter {number}").as_bytes()) for number in range(1, LETTERS + 1)])
        delivered(
            it,
            [letter(100, mail("Re: budget", "the zebra budget", "Eve <eve@example.net>").as_bytes(), account="work")],
        )
        delivered(it, [letter(101, with_file("plan.pdf", b"%PDF-1.7 zebra"), labels=("Plans", "\\Inbox"))])
        delivered(it, [letter(102, mail("news", List_Id="News <news.example.org>").as_bytes())])
        delivered(it, [letter(103, with_file("page.html", PAGE, "text/html"), hours=-1, thread=THREAD)])
        delivered(it, [letter(104, mail("Re: file page.html").as_bytes(), hours=-2, thread=THREAD)])
        for number, fields in enumerate(({}, {"In_Reply_To": "<0@plain>"}, {"References": "<0@plain> <1@plain>"}), 105):
            plain = mail("plain talk", Message_ID=f"<{number - 105}@plain>", **fields).as_bytes()
            delivered(it, [letter(number, plain, gmail=False, hours=number - 200)])
        yield it


@pytest.fixture(scope="module")
def web(here: Place) -> Running:
    return here.web()


@pytest.fixture(scope="module")
def reader(here: Place, web: Running) -> Api:
    return api(web, token(here, "--scope", "read"))


@pytest.fixture(scope="module")
def of_work(here: Place, web: Running) -> Api:
    return api(web, token(here, "--scope", "read", "--account", "work", "--ttl", "1h"))


def error_of(answer: httpx.Response) -> tuple[int, str]:
    found = answer.json()
    assert found.keys() == {"error"}
    assert found["error"].keys() == {"code", "message"}
    assert found["error"]["message"]
    return answer.status_code, found["error"]["code"]


def test_pages_follow_each_other_and_miss_nothing(reader: Api) -> None:
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = reader.get("emails", limit=7, **({"cursor": cursor} if cursor else {})).json()
        assert page.keys() == {"items", "next", "total"}
        assert page["total"] == LETTERS + OTHERS
        seen += [item["email_id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == LETTERS + OTHERS
    dates = [item["internaldate"] for item in reader.items("emails", limit=1000)]
    assert dates == sorted(dates, reverse=True)


def test_items_are_records_without_the_contents_of_attachments(reader: Api) -> None:
    items = reader.items("emails", limit=5)
    for item in items:
        jsonschema.validate(item, SCHEMA)
    (plan,) = [item for item in items if item["attachments"]]
    assert (plan["schema"], plan["attachments"][0]["filename"], plan["attachments"][0]["content"]) == (
        "email.v1",
        "plan.pdf",
        None,
    )


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({"q": "zebra"}, [100]),
        ({"q": "plan"}, [101]),
        ({"q": '"letter 7"'}, [7]),
        ({"from": "eve"}, [100]),
        ({"to": "bob@example.com", "account": "work"}, [100]),
        ({"subject": "budget"}, [100]),
        ({"account": "work"}, [100]),
        ({"account": "nobody"}, []),
        ({"label": "plans"}, [101]),
        ({"label": ["plans", "inbox"]}, [101]),
        ({"label": ["plans", "other"]}, []),
        ({"tag": "none"}, []),
        ({"after": "2026-01-05T04:00:00Z", "before": "2026-01-05T05:00:00+00:00"}, [100]),
        ({"after": "2026-01-05T05:00:00"}, [102, 101]),
        ({"after": "1d"}, []),
        ({"has_attachment": "true"}, [101, 103]),
        ({"has_attachment": "1", "filename": "*.PDF"}, [101]),
        ({"filename": "plan"}, [101]),
        ({"list": "news.example.org"}, [102]),
        ({"bounce": "true"}, []),
        ({"min_size": 100, "q": "zebra"}, [100]),
        ({"max_size": 10}, []),
        ({"q": "letter -7", "before": "2026-01-01T09:00:00Z"}, [8, 6, 5, 4, 3, 2, 1]),
        ({"q": "letter", "before": "2026-01-01 01:00:00+00:00"}, []),
        ({"q": "", "from": "", "account": "work"}, [100]),
    ],
)
def test_filters(reader: Api, query: dict[str, str], numbers: list[int]) -> None:
    found = [
        int(item["email_id"].rpartition(":")[2]) - 1_790_000_000_000_000_000 for item in reader.items("emails", **query)
    ]
    assert found == numbers


@pytest.mark.parametrize(
    "query",
    [
        {"form": "eve"},
        {"limit": 0},
        {"limit": "many"},
        {"cursor": "nonsense"},
        {"after": "yesterday"},
        {"has_attachment": "maybe"},
        {"min_size": -1},
        {"max_size": 2**63},
    ],
)
def test_a_query_that_cannot_be_understood_is_refused_in_words(reader: Api, query: dict[str, object]) -> None:
    assert error_of(reader.get("emails", **query)) == (400, "bad_request")


@pytest.mark.parametrize("text", ["", "ei_unknown", "'; --", "ü", "Basic x"])
def test_without_a_valid_token_nothing_is_told(web: Running, text: str) -> None:
    headers = {"Authorization": f"Bearer {text}".encode()} if text else {}
    answer = httpx.get(api(web).url + "/api/v1/emails", headers=headers, trust_env=False, timeout=30)
    assert error_of(answer) == (401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_token_ends_when_it_is_revoked_and_only_its_hash_is_kept(here: Place, web: Running) -> None:
    text = token(here)
    asking = api(web, text)
    assert asking.get("emails", limit=1).status_code == 200
    listed = json.loads(here.run("-m", "email_ingestion", "tokens", "list", "--json").stdout)
    assert here.run("-m", "email_ingestion", "tokens", "revoke", listed[-1]["id"][:8]).returncode == 0
    assert error_of(asking.get("emails", limit=1)) == (401, "unauthorized")
    written = b"".join(path.read_bytes() for path in here.folder.rglob("*") if path.is_file())
    assert text.encode() not in written
    assert here.run("-m", "email_ingestion", "tokens", "revoke", "0" * 12).returncode == 1


def test_a_token_of_one_account_sees_no_other(of_work: Api) -> None:
    assert [item["account"] for item in of_work.items("emails")] == ["work"]
    assert of_work.get("emails").json()["total"] == 1
    assert error_of(of_work.get("emails", account="default")) == (403, "forbidden")


def identity(number: int, account: str = "default") -> str:
    return f"{account}:gm:{1_790_000_000_000_000_000 + number}"


def test_one_message_is_the_record_that_sinks_get(reader: Api) -> None:
    record = reader.get(f"emails/{identity(101)}").json()
    jsonschema.validate(record, SCHEMA)
    assert b64decode(record["attachments"][0]["content"]) == b"%PDF-1.7 zebra"
    assert reader.get(f"emails/{identity(101).removeprefix('default:')}").json() == record
    assert reader.get(f"emails/{1_790_000_000_000_000_101}").json() == record


def test_a_message_whose_bytes_are_lost_is_told_as_far_as_it_is_known(here: Place, reader: Api) -> None:
    with closing(sqlite3.connect(here.folder / "data" / "email_ingestion.db")) as database, database:
        (sha256,) = database.execute("SELECT sha256 FROM emails WHERE email_id = ?", (identity(30),)).fetchone()
        (kept,) = database.execute("SELECT data FROM contents WHERE sha256 = ?", (sha256,)).fetchone()
        database.execute("UPDATE contents SET data = ? WHERE sha256 = ?", (b"damaged", sha256))
    try:
        (listed,) = reader.items("emails", q='"letter 30"')
        record = reader.get(f"emails/{identity(30)}").json()
        for each in (listed, record):
            jsonschema.validate(each, SCHEMA)
            assert (each["subject"], each["text"].strip()) == ("letter 30", "Hello")
            assert "raw:unavailable" in each["defects"]
        assert error_of(reader.get(f"emails/{identity(30)}/raw")) == (503, "unavailable")
        assert len(reader.items("emails", limit=1000)) == LETTERS + OTHERS
    finally:
        with closing(sqlite3.connect(here.folder / "data" / "email_ingestion.db")) as database, database:
            database.execute("UPDATE contents SET data = ? WHERE sha256 = ?", (kept, sha256))


def test_an_identity_must_mean_one_message(reader: Api, of_work: Api) -> None:
    assert error_of(reader.get("emails/17900000000")) == (409, "ambiguous")
    assert of_work.get("emails/17900000000").json()["account"] == "work"
    assert error_of(reader.get("emails/17900")) == (404, "not_found")
    assert error_of(reader.get("emails/default:gm:99999999")) == (404, "not_found")
    assert error_of(reader.get("emails/%25_!aaaa")) == (404, "not_found")
    assert error_of(reader.get("emails/%00%25_!")) == (400, "bad_request")


def test_raw_bytes_and_attachments_are_files_to_save(here: Place, reader: Api) -> None:
    raw = reader.get(f"emails/{identity(101)}/raw")
    ((stored, size),) = here.rows(f"SELECT sha256, size FROM emails WHERE email_id = '{identity(101)}'")
    assert (hashlib.sha256(raw.content).hexdigest(), len(raw.content)) == (stored, size)
    assert raw.headers["content-type"] == "message/rfc822"
    plan = reader.get(f"emails/{identity(101)}/attachments/1")
    assert plan.content == b"%PDF-1.7 zebra"
    page = reader.get(f"emails/{identity(103)}/attachments/1")
    assert (page.content.strip(), page.headers["content-type"]) == (PAGE, "application/octet-stream")
    for answer in (raw, plan, page):
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    for position in (0, 2, -1, 2**70):
        assert error_of(reader.get(f"emails/{identity(101)}/attachments/{position}")) == (404, "not_found")
    assert error_of(reader.get(f"emails/{identity(101)}/attachments/one")) == (400, "bad_request")


@pytest.mark.parametrize("of", [str(THREAD), identity(103), identity(104)])
def test_a_thread_of_gmail_is_told_oldest_first(reader: Api, of: str) -> None:
    page = reader.get(f"threads/{of}").json()
    assert [item["email_id"] for item in page["items"]] == [identity(104), identity(103)]
    assert (page["next"], page["total"]) == (None, 2)
    first = reader.get(f"threads/{of}", limit=1).json()
    second = reader.get(f"threads/{of}", limit=1, cursor=first["next"]).json()
    assert [item["email_id"] for item in second["items"]] == [identity(103)]
    assert second["next"] is None


def test_a_thread_without_gmail_follows_the_references(reader: Api) -> None:
    found = [item["email_id"] for item in reader.items("emails", q='"plain talk"')]
    assert len(found) == 3
    for each in found:
        assert [item["email_id"] for item in reader.items(f"threads/{each}")] == found[::-1]


@pytest.mark.parametrize("path", ["emails/{}", "emails/{}/raw", "emails/{}/attachments/1", "threads/{}"])
def test_a_token_of_one_account_reaches_no_other_by_any_path(of_work: Api, path: str) -> None:
    assert error_of(of_work.get(path.format(identity(101)))) == (403, "forbidden")
    assert error_of(of_work.get(path.format("default:gm:1"))) == (403, "forbidden")  # whether or not there is one
    assert error_of(of_work.get(path.format(str(THREAD)))) == (404, "not_found")


def test_a_token_of_one_account_sees_its_own_numbers_only(reader: Api, of_work: Api) -> None:
    assert of_work.get("stats").json()["emails"] == {
        "messages": 1,
        "accounts": {"work": {"messages": 1, "received_last_24_hours": 0}},
    }
    assert of_work.get("stats").json()["stream"] is None
    assert [each["name"] for each in of_work.items("accounts")] == ["work"]
    assert error_of(of_work.get("dead-letters", account="default")) == (403, "forbidden")
    assert reader.get("stats").json()["emails"]["messages"] == LETTERS + OTHERS


def test_what_cannot_be_asked_is_null_and_says_why(reader: Api) -> None:
    stats = reader.get("stats").json()
    assert (stats["stream"], stats["dead_letters"]) == (None, None)
    assert stats["problems"]
    items = reader.items("accounts")
    assert [(each["name"], each["running"], each["last_uid"]) for each in items] == [
        ("default", None, None),
        ("work", None, None),
    ]
    assert all(each["problem"] for each in items)
    assert error_of(reader.get("dead-letters")) == (503, "unavailable")
    assert error_of(reader.get("dead-letters", cursor="x")) == (400, "bad_request")


def test_the_description_names_every_path_and_no_mail(reader: Api) -> None:
    described = httpx.get(reader.url + "/openapi.json", trust_env=False, timeout=30)
    paths = described.json()["paths"]
    names = ("emails", "emails/{email_id}", "emails/{email_id}/raw", "emails/{email_id}/attachments/{position}")
    assert {f"/api/v1/{name}" for name in (*names, "threads/{thread_id}", "accounts", "dead-letters", "stats")} <= set(
        paths
    )
    assert "zebra" not in described.text
    assert described.json()["components"]["securitySchemes"]


def test_a_token_that_asks_too_often_must_wait(tmp_path: Path) -> None:
    with place(tmp_path, "redis://127.0.0.1:1/0", WEB_REQUESTS_PER_MINUTE=6) as it:
        delivered(it, [])
        asking = api(it.web(), token(it))
        assert asking.get("emails").status_code == 200
        answer = asking.get("emails")
        assert error_of(answer) == (429, "too_many_requests")
        assert 1 <= int(answer.headers["retry-after"]) <= 10


@pytest.mark.parametrize("host", ["evil.example.com", "127.0.0.1.evil.example.com", "a@b.example.com", "[::1"])
def test_a_foreign_host_is_refused_for_every_path(reader: Api, host: str) -> None:
    for path in ("/", "/api/v1/emails", "/openapi.json", "/healthz"):
        assert reader.ask(path, Host=host).status_code in {400, 421}


def test_every_answer_has_the_headers_that_keep_it_to_itself(reader: Api) -> None:
    for path in ("/healthz", "/api/v1/emails", "/api/nothing", "/nothing", "/openapi.json"):
        headers = reader.ask(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"


def test_what_is_not_there_is_told_in_the_same_shape(reader: Api) -> None:
    assert error_of(reader.get("nothing")) == (404, "not_found")
    answer = httpx.post(reader.url + "/api/v1/emails", trust_env=False, timeout=30)
    assert error_of(answer) == (405, "method_not_allowed")


def test_reads_stand_in_the_audit_log(here: Place, reader: Api) -> None:
    reader.items("emails", q="zebra")
    last = json.loads((here.folder / "logs" / "audit.log").read_text().splitlines()[-1])
    assert (last["via"], last["action"], last["filters"]) == ("api", "search", ["q"])
    assert last["emails"] == ["work:gm:1790000000000000100"]
    assert last["user"].startswith("token ")


def test_a_database_that_another_process_keeps_is_said_to_be_away(here: Place, reader: Api) -> None:
    reader.items("emails", limit=1)
    path = here.folder / "data" / "email_ingestion.db"
    away = path.with_name("away.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as locking:
        locking.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        locking.execute("BEGIN IMMEDIATE")  # readers go on beside a writer
        assert reader.get("emails", limit=1).status_code == 200
        locking.execute("ROLLBACK")
    path.rename(away)
    path.mkdir()
    try:
        answer = reader.get("emails", limit=1)
        assert error_of(answer) == (503, "unavailable")
        assert answer.elapsed.total_seconds() < 10  # generous: the machine may be loaded
    finally:
        path.rmdir()
        away.rename(path)
    assert reader.get("emails", limit=1).status_code == 200


def test_a_second_web_process_is_refused_and_a_taken_port_names_its_owner(
    here: Place, web: Running, tmp_path: Path
) -> None:
    web.url("web_url")
    second = here.run("-m", "email_ingestion", "web")
    assert second.returncode == 2
    assert "already running" in second.stderr
    port = web.url("web_url").rpartition(":")[2]
    with place(tmp_path / "other", "redis://127.0.0.1:1/0", WEB_PORT=port) as other:
        taken = other.run("-m", "email_ingestion", "web")
    assert taken.returncode == 2
    assert "WEB_PORT" in taken.stderr
    assert "Traceback" not in taken.stderr


def test_a_login_link_lets_a_person_in(here: Place, web: Running) -> None:
    web.url("web_url")
    done = here.run("-m", "email_ingestion", "web", "login-link", "--role", "reader", "--user", "ada")
    link = done.stdout.splitlines()[-1]
    assert link.startswith(web.url("web_url"))
    with httpx.Client(trust_env=False, timeout=30) as browser:
        assert "<form" in browser.get(link).text
        assert browser.post(link, data={"goal": "/runbooks"}, follow_redirects=True).status_code == 200
        assert "ada" in browser.get(web.url("web_url") + "/runbooks").text


def test_it_speaks_tls_with_the_certificate_of_the_settings(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    with place(tmp_path / "here", "redis://127.0.0.1:1/0", WEB_TLS_CERTIFICATE_FILE=certificate) as it:
        alone = it.run("-m", "email_ingestion", "web")
        assert (alone.returncode, "WEB_TLS_KEY_FILE" in alone.stderr) == (78, True)
        it.set(WEB_TLS_KEY_FILE=tmp_path / "nothing.pem")
        missing = it.run("-m", "email_ingestion", "web")
        assert (missing.returncode, "nothing.pem" in missing.stderr) == (78, True)
        it.set(WEB_TLS_KEY_FILE=key)
        url = it.web().url("web_url")
        assert url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"{url}/healthz", verify=trust, trust_env=False, timeout=30).text == "alive\n"


def make_certificate(certificate: Path, key: Path) -> None:
    """A certificate for 127.0.0.1 that is its own authority."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_it_stops_at_once_and_leaves_no_files(tmp_path: Path) -> None:
    with place(tmp_path, "redis://127.0.0.1:1/0") as it:
        running = it.web()
        running.url("web_url")
        assert running.terminate() == 0
        assert [path.name for path in (tmp_path / "pids").iterdir() if path.suffix != ".lock"] == []
        assert "process_stopped" in running.log()
