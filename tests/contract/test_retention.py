"""Mail goes when it is older than account or route keep it, and a hold keeps it all the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from email_ingestion.app.nightly_retention import RAN, NightlyRetention, retention_selector
from email_ingestion.cli import retention as commands
from email_ingestion.erasure import eraser
from email_ingestion.errors import ConfigurationError
from email_ingestion.events import RetentionApplied
from email_ingestion.ledger.model import Hold
from email_ingestion.ops.audit_log import read_audit
from email_ingestion.parsing import parse
from email_ingestion.routing import Router
from email_ingestion.settings import load_settings
from tests.contract.erasing import ANNA, BERT, Installations, Kept, identities, kept_mail, letter, message
from tests.servers.links import Heard
from tests.servers.redis import RedisServer

NOW = datetime.now(UTC)
ROUTES = ({"sender": BERT, "retention_days": 0}, {"subject": "letter 3", "retention_days": 7})


@pytest.fixture
def kept(
    tmp_path: Path, database_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Installations:
    monkeypatch.chdir(tmp_path)
    with kept_mail(tmp_path, database_url, redis_server.url) as found:
        found.settings = found.settings.model_copy(update={"retention_days": 30, "routes": ROUTES})
        yield found


def old(number: int, days: float, sender: str = ANNA, **facts):
    return message(number, letter(number, sender), internaldate=NOW - timedelta(days=days), **facts)


def hold(kind: str, value: str = "", account: str | None = None) -> Hold:
    return Hold(f"hold-{kind}", kind, value, account, "a case", "ada", NOW)


def night(kept: Kept) -> tuple[RetentionApplied, ...]:
    heard = Heard()
    assert NightlyRetention(kept.settings, kept.link, lambda: kept.ledger, heard).run()
    return tuple(heard.of(RetentionApplied))


def test_account_and_route_say_how_long_and_the_route_wins(kept: Kept):
    kept.deliver(old(1, 31), old(2, 29), old(3, 8), old(4, 400, BERT), old(5, 31, account="work"))
    (told,) = night(kept)
    assert kept.delivered() == {*identities(2, 4), "work:gm:5005"}
    assert (told.erased, told.held, told.left) == (2, 0, 0)
    (record,) = [each for each in read_audit(kept.settings.log_dir) if each["action"] == "retention"]
    assert record["retention_days"] == {"default": 30}
    kept.deliver(old(1, 31))  # whoever brings it again
    assert kept.delivered() == {*identities(2, 4), "work:gm:5005"}


def test_dead_letters_and_queued_mail_get_old_too(kept: Kept):
    kept.queue(old(1, 31), old(2, 29), old(3, 8), old(4, 400, BERT))
    kept.bury()
    kept.queue(old(6, 31), old(7, 29))
    night(kept)
    assert kept.in_redis()[:2] == (1, 2)


def test_a_hold_wins_over_age_and_over_erasure_until_it_is_released(kept: Kept):
    kept.deliver(old(1, 31), old(2, 31, "carl@example.net"), old(6, 31))
    kept.queue(old(4, 31), old(5, 31, "carl@example.net"))
    kept.ledger.erasure.add_hold(hold("sender", ANNA))
    (told,) = night(kept)
    assert kept.delivered() == identities(1, 6)
    assert kept.in_redis()[0] == 1
    assert (told.erased, told.held) == (2, 3)
    assert kept.erase(email_ids=tuple(identities(1))).held == 1
    assert kept.preview(sender=ANNA).held == 3
    assert kept.delivered() == identities(1, 6)
    assert kept.ledger.erasure.release_hold("hold-sender", "ada")
    assert not kept.ledger.erasure.release_hold("hold-sender", "ada")
    assert kept.ledger.erasure.holds() == []
    night(kept)
    assert kept.delivered() == set()
    assert kept.in_redis()[0] == 0


@pytest.mark.parametrize(
    ("made", "stays"),
    [
        (hold("id", "default:gm:5001"), {1}),
        (hold("address", "me@example.com"), {1, 2}),
        (hold("account", "", "default"), {1, 2}),
        (hold("sender", "@example.org", "work"), set()),
    ],
)
def test_what_a_hold_keeps(kept: Kept, made: Hold, stays: set[int]):
    kept.deliver(old(1, 31), old(2, 31))
    kept.ledger.erasure.add_hold(made)
    night(kept)
    assert kept.delivered() == identities(*stays)


def test_a_hold_that_comes_while_an_erasure_runs_keeps_the_rest(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eraser._batches, "__defaults__", (1,))
    kept.deliver(old(1, 31), old(2, 31), old(4, 31))
    selector = retention_selector(kept.settings, kept.ledger)
    assert selector
    with kept.eraser() as running:
        steps = running.erase(selector)
        next(steps)
        kept.ledger.erasure.add_hold(hold("account", "", "default"))
        for _ in steps:
            pass
    assert kept.delivered() == identities(2, 4)


def test_without_days_nothing_is_looked_at(kept: Kept):
    kept.settings = kept.settings.model_copy(update={"retention_days": None, "routes": ()})
    kept.deliver(old(1, 4000))
    assert retention_selector(kept.settings, kept.ledger) is None
    assert night(kept) == ()
    assert kept.delivered() == identities(1)


def test_it_runs_once_a_day_also_when_the_producer_starts_often(kept: Kept):
    kept.deliver(old(1, 31))
    nightly = NightlyRetention(kept.settings, kept.link, lambda: kept.ledger, Heard())
    nightly._run_if_due()
    assert kept.delivered() == set()
    assert (kept.settings.erasure_dir / RAN).exists()
    kept.deliver(old(2, 31))
    NightlyRetention(kept.settings, kept.link, lambda: kept.ledger, Heard())._run_if_due()
    assert kept.delivered() == identities(2)


def test_the_last_route_that_says_so_counts():
    routes = Router([{"domain": "example.org", "retention_days": 7}, {"subject": "letter 1", "retention_days": 0}], ())
    found = [routes.decide(parse(each.envelope, each.raw or b"")) for each in (old(1, 1), old(2, 1), old(3, 1, BERT))]
    assert [each.retention_days for each in found] == [0, 7, None]
    with pytest.raises(ConfigurationError, match="retention_days"):
        Router([{"retention_days": -1}], ())


def test_an_account_has_its_own_days(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    accounts = ({"name": "one"}, {"name": "two", "retention_days": 90})
    found = load_settings(retention_days=30, accounts=accounts).all_accounts
    assert [each.retention_days for each in found] == [30, 90]
    with pytest.raises(ConfigurationError, match="RETENTION_DAYS"):
        load_settings(retention_days=0)


def test_a_hold_is_added_listed_and_released_by_its_number(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(commands, "load_settings", lambda: kept.settings)
    kept.deliver(old(1, 31))
    assert commands.list_holds() == 1
    assert commands.add(email_id="gm:5001", reason="case 1") == 0
    capsys.readouterr()
    assert commands.add(address="Anna@example.org") == 0
    number = capsys.readouterr().out.strip()
    assert commands.list_holds() == 0
    assert "default:gm:5001" in capsys.readouterr().out
    assert commands.release(number) == 0
    assert commands.release(number) == 1
    assert commands.add(email_id="nowhere") == 1
    assert not any("anna" in str(each).lower() for each in read_audit(kept.settings.log_dir))
    assert [each.kind for each in kept.ledger.erasure.holds()] == ["id"]
