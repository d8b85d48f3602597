"""Mail in the pages: found, read, saved, sent again and erased, each with its line in the audit log."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from email.message import EmailMessage
from html import unescape
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from email_ingestion.ledger.store import open_ledger
from email_ingestion.ops.audit_log import read_audit
from email_ingestion.settings import Settings
from tests.servers.api import letter
from tests.servers.redis import RedisServer
from tests.servers.web import Visitor, running_pages, web_settings

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WAIT_SECONDS = 60.0


def _mail(subject: str, text: str = "Hello", **fields: str) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "Ann <ann@example.org>", "Bob <bob@example.com>", subject
    for name, value in fields.items():
        made[name.replace("_", "-")] = value
    made.set_content(text)
    return made


def _with_html() -> EmailMessage:
    made = _mail("Pictures & <b>more</b>", "the plain side")
    html = '<p onclick="x()">Hi</p><img src="cid:own@example.com"><img src="https://pictures.example.com/a.png">'
    made.add_alternative(f"{html}<script>x()</script>", subtype="html")
    made.get_payload()[1].add_related(PNG, "image", "png", cid="<own@example.com>")  # type: ignore[union-attr,index]
    made.add_attachment(b"<script>x()</script>", "text", "html", filename="../../evil\u202egnp.html")
    made.add_attachment("a,b\n", "csv", filename="Übersicht 2026.csv")
    return made


def _odd() -> EmailMessage:
    made = _mail("w" * 10_000 + " endless")
    made.replace_header("From", "\u202eAnn\u2066 <ann@example.org>")
    for number in range(500):
        made.add_attachment(b"x", "application", "pdf", filename=f"page/{number}\u202e.pdf")
    return made


MAILS = [
    *(letter(number, _mail(f"letter {number}", f"lorem {number}").as_bytes()) for number in range(1, 46)),
    letter(50, _mail("Invoice of May", "Please pay Müller & Söhne <soon>").as_bytes(), labels=("Work", "\\Inbox")),
    letter(51, _mail("Re: Invoice of May", "we paid").as_bytes(), thread=1_790_000_000_000_000_050),
    letter(60, _with_html().as_bytes()),
]
INVOICE, ANSWER, PICTURES = (each.email.email_id for each in MAILS[-3:])
ODD = letter(70, _odd().as_bytes())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = web_settings(tmp_path, sinks=("database", f"ndjson:{tmp_path}/out.ndjson"))
    with closing(open_ledger(made.database_url)) as ledger:
        ledger.record([replace(each, owed_to=(made.sinks[1],) if each is MAILS[-3] else ()) for each in MAILS])
    return made


@pytest.fixture
def visitor(settings: Settings) -> Iterator[Visitor]:
    with running_pages(settings) as address, Visitor(address) as made:
        made.enter(settings)
        yield made


def _form(email_id: str, order: str) -> str:
    return f"/mail/{quote(email_id, safe='')}/{order}"


def _text(page: httpx.Response) -> str:
    """What a person reads of a page."""
    body = re.sub(r"<(script|style).*?</\1>", "", page.text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def test_pages_of_hits_say_how_many_there_are_and_none_is_shown_twice(visitor: Visitor) -> None:
    seen: list[str] = []
    address, ranges = "/mail?q=lorem", []
    while True:
        page = visitor.get(address)
        assert page.status_code == 200
        seen += re.findall(r'href="/mail/(default%3A[^"]+)"', page.text)
        ranges.append(re.search(r'role="status">([^<]*)<', page.text)[1])  # type: ignore[index]
        following = re.search(r'href="([^"]*)" rel="next"', page.text)
        if not following:
            break
        address = unescape(following[1])
    assert ranges == ["1–20 of 45", "21–40 of 45", "41–45 of 45"]  # noqa: RUF001 - a range
    assert len(set(seen)) == len(seen) == 45
    assert "No mail is found" in visitor.get("/mail?q=nothing-like-it").text
    assert "1–20 of 48" in visitor.get("/mail").text  # noqa: RUF001 - a range


def test_words_are_marked_and_nothing_of_a_mail_is_html_of_the_page(visitor: Visitor) -> None:
    page = visitor.get("/mail", params={"q": "muller pay*"})
    assert "Please <mark>pay</mark> <mark>Müller</mark> &amp; Söhne &lt;soon&gt;" in page.text
    pictures = visitor.get("/mail", params={"q": "pictures"})
    assert "<mark>Pictures</mark> &amp; &lt;b&gt;more&lt;/b&gt;" in pictures.text
    odd = visitor.get("/mail", params={"q": '"><script>x()</script>', "from": "'\"><b>"})
    assert odd.status_code == 200
    assert "<script>x" not in odd.text
    assert "<b>" not in odd.text


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"from": "ann@", "q": "invoice"}, 2),
        ({"to": "bob", "subject": "invoice of*"}, 1),
        ({"label": "work"}, 1),
        ({"after": "2026-01-03T02:30", "before": "2026-01-04"}, 2),
        ({"has_attachment": "true", "filename": "*.csv"}, 1),
        ({"min_size": "0.4 k", "has_attachment": "true"}, 1),
        ({"max_size": "10"}, 0),
        ({"account": "default", "bounce": "false", "tag": ""}, 48),
        ({"list": "news"}, 0),
    ],
)
def test_every_filter_of_the_form_filters(visitor: Visitor, filters: dict[str, str], found: int) -> None:
    page = visitor.get("/mail", params=filters)
    expected = f"of {found}<" if found else "No mail is found"
    assert expected in page.text, _text(page)


@pytest.mark.parametrize(
    "filters", [{"after": "yesterday"}, {"min_size": "big"}, {"cursor": "abc"}, {"has_attachment": "perhaps"}]
)
def test_filter_that_means_nothing_is_named_and_kept_in_the_form(visitor: Visitor, filters: dict[str, str]) -> None:
    page = visitor.get("/mail", params=filters)
    (name, value), *_ = filters.items()
    assert page.status_code == 400
    assert f"Not understood: {name} is" in page.text
    assert value in page.text or name in {"cursor", "has_attachment"}


def test_message_is_shown_with_all_that_is_known_of_it(visitor: Visitor, settings: Settings) -> None:
    page = visitor.get(f"/mail/{INVOICE}")
    shown = _text(page)
    for words in ("Invoice of May", "Ann <ann@example.org>", "Bob <bob@example.com>", "Work, \\Inbox", INVOICE):
        assert words in shown
    assert "Please pay Müller & Söhne <soon>" in shown
    assert "Re: Invoice of May" in shown, "its conversation"
    assert f"{settings.sinks[1]} waiting" in shown
    assert visitor.get(f"/mail/{INVOICE.rpartition(':')[2]}").url.path == f"/mail/{INVOICE}"
    assert visitor.get("/mail/default:gm:1").status_code == 404


def test_html_is_a_document_of_its_own_that_may_do_nothing(visitor: Visitor) -> None:
    page = visitor.get(f"/mail/{PICTURES}")
    frame = re.search(r"<iframe[^>]*>", page.text)
    assert frame
    assert 'sandbox="allow-popups allow-popups-to-escape-sandbox"' in frame[0]
    assert "Load them this once" in page.text
    document = visitor.get(f"/mail/{PICTURES}/html")
    assert "<p>Hi</p>" in document.text
    assert "data:image/png;base64," in document.text
    assert "script" not in document.text
    assert "pictures.example.com" not in document.text
    policy = document.headers["content-security-policy"]
    assert "default-src 'none'; img-src data:;" in policy
    asked = visitor.get(f"/mail/{PICTURES}/html?remote=1")
    assert 'src="https://pictures.example.com/a.png"' in asked.text
    assert "img-src data: https:;" in asked.headers["content-security-policy"]


def test_files_are_saved_and_never_shown_under_names_that_are_harmless(visitor: Visitor) -> None:
    page = visitor.get(f"/mail/{PICTURES}")
    links = [unescape(link) for link in re.findall(r'href="([^"]*/attachments/\d+)"', page.text)]
    answers = [visitor.get(link) for link in links]
    names = [re.search(r"filename\*=UTF-8''(.*)$", each.headers["content-disposition"])[1] for each in answers]  # type: ignore[index]
    assert names[-2:] == ["evilgnp.html", "%C3%9Cbersicht%202026.csv"]
    raw = visitor.get(f"/mail/{PICTURES}/raw")
    for answer in (*answers, raw):
        assert answer.status_code == 200
        assert answer.headers["content-disposition"].startswith("attachment; filename=")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    assert answers[-2].headers["content-type"] == "application/octet-stream"
    assert answers[-1].content == b"a,b\n"
    assert raw.content == _with_html_bytes()
    assert visitor.get(f"/mail/{PICTURES}/attachments/99").status_code == 404
    assert "From: Ann" in _text(visitor.get(f"/mail/{PICTURES}/source"))


def _with_html_bytes() -> bytes:
    return next(content.data for content in MAILS[-1].contents if content.sha256 == MAILS[-1].email.envelope.sha256)


def test_who_reads_what_stands_in_the_audit_log_and_on_its_page(visitor: Visitor, settings: Settings) -> None:
    for path in ("", "/html", "/raw", "/source", "/attachments/1"):
        visitor.get(f"/mail/{PICTURES}{path}")
    visitor.get("/mail?q=lorem&from=ann")
    lines = [each for each in read_audit(settings.log_dir) if each.get("via") == "web" and "read" in each]
    assert [(each["user"], each["form"]) for each in lines if each["action"] == "export"] == [
        ("ada", form) for form in ("page", "html", "raw", "source", "attachment 1")
    ]
    assert sum(each["read"] for each in lines) == 5, "the page and its frame are one read, a search is one"
    search = next(each for each in lines if each["action"] == "search")
    assert (search["filters"], len(search["emails"])) == (["q", "from"], 20)
    assert "lorem" not in json.dumps(lines)
    page = _text(visitor.get(f"/mail/{PICTURES}/audit"))
    assert "ada web export raw done" in page


def test_message_is_sent_to_a_sink_again_by_operators(visitor: Visitor, settings: Settings) -> None:
    sink = settings.sinks[1]
    page = visitor.submit(visitor.get(f"/mail/{PICTURES}"), _form(PICTURES, "resend"), sink=sink)
    assert f"The sink {sink} gets it again" in _text(page)
    assert f"{sink} waiting" in _text(page)
    with closing(open_ledger(settings.database_url)) as ledger:
        assert ledger.resends.left(sink) == 1
    assert "It waits for the sink" in _text(visitor.submit(page, _form(PICTURES, "resend"), sink=sink))
    assert "There is no sink" in _text(visitor.submit(page, _form(PICTURES, "resend"), sink="x"))
    orders = [each for each in read_audit(settings.log_dir) if each["action"] == "resend"]
    assert [(each["user"], each["result"]) for each in orders[:2]] == [("ada", "started"), ("ada", "done")]
    assert (orders[-1]["user"], orders[-1]["result"]) == ("ada", "refused")


def test_readers_see_mail_and_give_no_orders(settings: Settings) -> None:
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings, "reader")
        page = visitor.get(f"/mail/{INVOICE}")
        assert page.status_code == 200
        assert "/erase" not in page.text
        assert "/resend" not in page.text
        csrf = re.search(r'name="csrf" value="([^"]*)"', page.text)
        assert csrf
        for path in ("erase", "resend"):
            answer = visitor.post(f"/mail/{INVOICE}/{path}", data={"csrf": csrf[1], "sink": settings.sinks[1]})
            assert answer.status_code == 403
    with closing(open_ledger(settings.database_url)) as ledger:
        assert ledger.known_ids([INVOICE]) == {INVOICE}


def test_message_is_erased_after_a_look_at_what_goes(settings: Settings, own_redis: RedisServer) -> None:
    settings = settings.model_copy(update={"redis_url": own_redis.url})
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings)
        page = visitor.get(f"/mail/{INVOICE}/erase")
        assert "messages in the database 1" in _text(page)
        with closing(open_ledger(settings.database_url)) as ledger:
            assert ledger.known_ids([INVOICE]) == {INVOICE}, "looking erases nothing"
        page = visitor.submit(page, _form(INVOICE, "erase"))
        deadline = time.monotonic() + WAIT_SECONDS
        while "It is erased" not in page.text:
            assert "problem" not in page.text, _text(page)
            assert time.monotonic() < deadline
            time.sleep(0.1)
            page = visitor.get(page.url)
        assert "1 messages in the database" in page.text
        assert "signed report" in page.text
        gone = visitor.get(f"/mail/{INVOICE}")
        assert gone.status_code == 404
        assert "It was erased." in gone.text
        assert visitor.get(f"/mail/{ANSWER}").status_code == 200
    orders = [each for each in read_audit(settings.log_dir) if each["action"] == "erase"]
    assert [(each["user"], each["via"], each["result"]) for each in orders] == [
        ("ada", "web", "started"),
        ("ada", "web", "done"),
    ]


def test_nothing_is_erased_while_redis_is_down(visitor: Visitor, settings: Settings) -> None:
    page = visitor.get(f"/mail/{INVOICE}/erase")
    assert page.status_code == 503
    assert "What it would remove is not known" in page.text
    assert '<button class="danger"' not in page.text
    with closing(open_ledger(settings.database_url)) as ledger:
        assert ledger.known_ids([INVOICE]) == {INVOICE}


def test_pages_answer_at_once_while_redis_and_database_hang_and_say_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # it takes connections and never answers
        address = f"127.0.0.1:{hanging.getsockname()[1]}"
        changes = {"database_url": f"postgresql+psycopg://nobody@{address}/none"}
        settings = web_settings(tmp_path, f"redis://{address}/0", **changes)
        with running_pages(settings) as pages, Visitor(pages) as visitor:
            visitor.enter(settings)
            for path in (
                "/mail",
                f"/mail/{INVOICE}",
                f"/mail/{INVOICE}/html",
                f"/mail/{INVOICE}/source",
                f"/mail/{INVOICE}/erase",
            ):
                page = visitor.get(path)
                assert page.status_code == 503, path
                assert "known" in page.text
                assert "patient=1" in page.text
                assert page.elapsed.total_seconds() < 5, "far below what a hanging server takes to be given up"
            csrf = re.search(r'name="csrf" value="([^"]*)"', visitor.get("/operate").text)
            assert csrf
            begun, refused = [visitor.post(f"/mail/{INVOICE}/erase", data={"csrf": csrf[1]}) for _ in range(2)]
            assert (begun.status_code, refused.status_code) == (200, 409), "it hangs, and is not begun twice"
            (record,) = [each for each in read_audit(settings.log_dir) if each["action"] == "erase"]
            assert (record["result"], record["user"], "under way already" in record["reason"]) == (
                "refused",
                "ada",
                True,
            )


def test_pages_answer_without_a_database_within_a_second_and_say_so(tmp_path: Path) -> None:
    settings = web_settings(tmp_path, database_url="postgresql+psycopg://nobody@127.0.0.1:1/none")
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings)
        for path in ("/mail", "/mail?q=x", f"/mail/{INVOICE}", f"/mail/{INVOICE}/html", "/accounts/stored"):
            page = visitor.get(path)
            assert page.status_code == 503
            assert "Not known" in page.text
            assert page.elapsed.total_seconds() < 5


def test_endless_subjects_names_and_lists_stay_apart_from_the_page(settings: Settings, visitor: Visitor) -> None:
    with closing(open_ledger(settings.database_url)) as ledger:
        ledger.record([ODD])
    found = visitor.get("/mail", params={"filename": "*499*", "q": "499"})
    assert "1–1 of 1<" in found.text  # noqa: RUF001 - a range
    assert len(found.text) < 20_000, "neither the subject nor the list is shown whole"
    assert re.search(r"Attached: <bdi><mark>499</mark>[^,]*</bdi>, .* and 490 more<", found.text), found.text
    page = visitor.get(f"/mail/{ODD.email.email_id}").text
    assert "w" * 206 not in page.split('id="headers"')[0]
    assert "w" * 10_000 in page.split('id="headers"')[1]
    assert page.count("/attachments/") == 500
    for each in (found.text, page):
        outside = re.sub(r"<bdi>.*?</bdi>|<td[^>]*>.*?</td>|<pre.*?</pre>", "", each, flags=re.DOTALL)
        assert "\u202e" not in outside, "it turns round what stands after it"
