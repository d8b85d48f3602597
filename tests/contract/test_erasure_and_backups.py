"""A restored backup brings back what was lost, and nothing that was erased before or after it was made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from email_ingestion import events
from email_ingestion.app.nightly_retention import NightlyRetention
from email_ingestion.backup import restore as restoring
from email_ingestion.backup.create import rehearse_restore
from email_ingestion.cli.backup import access_lines
from email_ingestion.cli.main import app
from email_ingestion.doctor.machine_checks import check_erasure
from email_ingestion.erasure import eraser as eraser_module
from email_ingestion.erasure.tombstones import TombstoneFile, refuse_unfinished_restore
from email_ingestion.errors import ConfigurationError, SinkUnavailable
from email_ingestion.fleet.redis_server import scratch_redis
from email_ingestion.ledger.accounts import AccountRow
from email_ingestion.ledger.store import Ledger
from email_ingestion.sinks.files import FilesSink
from tests.contract.erasing import ANNA, BERT, SILENT, Installations, Kept, identities, kept_mail, letter, message
from tests.servers.redis import RedisServer


@pytest.fixture
def kept(
    tmp_path: Path, database_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Installations:
    """Four messages of each, delivered, dead and queued, and the output of the sink `stream`."""
    monkeypatch.chdir(tmp_path)
    with kept_mail(tmp_path, database_url, redis_server.url) as found:
        found.deliver(message(1, letter(1)), message(2, letter(2, BERT)))
        found.queue(message(3, letter(3)), message(4, letter(4, BERT)))
        found.bury()
        found.queue(message(5, letter(5)), message(6, letter(6, BERT)))
        yield found


def test_what_was_erased_since_is_erased_again_before_the_restore_ends(kept: Kept):
    made = kept.backup()
    kept.erase(sender=ANNA)
    kept.link.client.flushall()
    done = kept.restore(made)
    assert done["messages_brought_back"] == 1
    assert done["erased_again"] == 3
    assert kept.delivered() == identities(2)
    assert kept.in_redis() == (1, 1, 1)
    refuse_unfinished_restore(kept.settings.erasure_dir)


def test_a_backup_carries_the_tombstones_to_a_new_machine(kept: Kept, tmp_path: Path):
    """The backup of today lies beside that of yesterday, which is restored: today's tombstones hold."""
    yesterday = kept.backup()
    kept.erase(sender=ANNA)
    today = kept.backup()
    assert "tombstones.jsonl" in [each.name for each in today.manifest.files]
    rehearsal = tmp_path / "rehearsal"
    rehearsal.mkdir()
    rehearse_restore(today, scratch_redis, SILENT, rehearsal)
    kept.forget()
    (kept.folder / "erasure" / "tombstones.jsonl").unlink()
    kept.restore(yesterday)
    assert kept.delivered() == identities(2)
    assert kept.in_redis() == (1, 1, 1)
    assert len(TombstoneFile(kept.settings.erasure_dir).read().tombstones) == 6


@pytest.mark.parametrize("killed", ["merge", "sweep"])
def test_a_restore_that_was_killed_lets_no_process_start_before_all_is_erased_again(
    kept: Kept, killed: str, monkeypatch: pytest.MonkeyPatch
):
    made = kept.backup()
    kept.erase(sender=ANNA)
    kept.link.client.flushall()

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            *((restoring, "_refuse_late_writers") if killed == "merge" else (eraser_module.Eraser, "_finish")), die
        )
        if killed == "merge":
            patch.setattr(eraser_module.Eraser, "reapply", die)
        with pytest.raises(KeyboardInterrupt):
            kept.restore(made)
    with pytest.raises(ConfigurationError, match="erase --reapply"):
        refuse_unfinished_restore(kept.settings.erasure_dir)
    told = {each.check: each for each in check_erasure(kept.settings)}
    assert told["restore"].verdict == "failed"
    assert "erase --reapply" in told["restore"].remedy
    kept.reapply()
    refuse_unfinished_restore(kept.settings.erasure_dir)
    assert [(each.check, each.verdict) for each in check_erasure(kept.settings)] == [("erasure", "ok")]
    assert kept.delivered() == identities(2)
    assert not {each for each in kept.in_redis() if each > 1}


def test_a_restore_that_fails_half_way_leaves_nothing_erased_behind(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    made = kept.backup()
    kept.erase(sender=ANNA)

    def refuse(_target: object) -> None:
        raise SinkUnavailable("a writer came")

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "_refuse_late_writers", refuse)
        with pytest.raises(SinkUnavailable):
            kept.restore(made)
    assert kept.delivered() == identities(2)
    refuse_unfinished_restore(kept.settings.erasure_dir)


def test_a_backup_of_before_there_were_tombstones_is_restored(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(TombstoneFile, "copy_to", lambda _file, _path: None)
        made = kept.backup()
    kept.forget()
    assert kept.restore(made)["erased_again"] == 0
    assert kept.delivered() == identities(1, 2)
    assert isinstance(kept.ledger, Ledger)


def test_an_erasure_that_was_killed_is_told_until_the_same_order_ends(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    file = TombstoneFile(kept.settings.erasure_dir)

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(eraser_module.Eraser, "_finish", die)
        with pytest.raises(KeyboardInterrupt):
            kept.erase(sender=ANNA)
    (mark,) = file.unfinished()
    assert ANNA not in mark.read_text()
    assert [each.verdict for each in check_erasure(kept.settings)] == ["degraded", "ok"]
    seen: list[events.Event] = []
    NightlyRetention(kept.settings, kept.link, lambda: kept.ledger, seen.append)._run_if_due()
    assert events.ErasuresLookedAt(1) in seen
    kept.erase(sender=BERT)
    assert file.unfinished() == [mark]
    kept.erase(sender=ANNA)
    assert file.unfinished() == []
    with monkeypatch.context() as patch:
        patch.setattr(FilesSink, "erase", lambda *_: (_ for _ in ()).throw(SinkUnavailable("its disk is away")))
        kept.deliver(message(7, letter(7)))
        kept.erase(sender=ANNA)
    assert len(file.unfinished()) == 1


def test_doctor_tells_of_tombstones_that_were_changed_or_cannot_be_read(kept: Kept):
    kept.erase(sender=ANNA)
    path = kept.settings.erasure_dir / "tombstones.jsonl"
    path.write_text(path.read_text().replace('"run": "', '"run": "x'))
    path.write_bytes(path.read_bytes() * 2)
    (found,) = check_erasure(kept.settings)
    assert (found.check, found.verdict) == ("erasure", "failed")
    assert "back from a backup" in found.remedy
    path.unlink()
    path.mkdir()
    (found,) = check_erasure(kept.settings)
    assert (found.check, found.verdict) == ("erasure", "failed")


def lose_access(kept: Kept) -> None:
    with kept.ledger._database.begin() as connection:
        for table in ("api_tokens", "accounts", "erased"):
            connection.exec_driver_sql(f"DELETE FROM {table}")


def test_a_revoked_token_stays_revoked_and_what_came_back_is_named(kept: Kept):
    tokens = kept.ledger.api_tokens
    stolen, known = tokens.create("operate", "ada")[0], tokens.create("read", "ada", "default")[1]
    revoked = tokens.find(stolen)[0].token_id
    kept.ledger.accounts.add(AccountRow("depot", "active", "{}", "secret"), "ada")
    made = kept.backup()
    done = CliRunner().invoke(app, ["tokens", "revoke", revoked], env=environment(kept), catch_exceptions=False)
    assert (done.exit_code, done.stderr.strip()) == (0, f"{revoked} is revoked")
    lose_access(kept)
    kept.link.client.flushall()
    brought = kept.restore(made)
    assert brought["tokens_brought_back"].keys() == {known.token_id}
    assert brought["accounts_brought_back"] == {"depot": "active"}
    found, now = tokens.find(stolen)
    assert found.state(now) == "revoked"
    (about_tokens, about_accounts) = access_lines(brought["tokens_brought_back"], brought["accounts_brought_back"])
    assert f"{known.token_id} (read, default, made " in about_tokens
    assert "depot (active)" in about_accounts
    kept.link.client.flushall()
    again = kept.restore(made)
    assert (again["tokens_brought_back"], again["accounts_brought_back"]) == ({}, {}), "they are there already"


def environment(kept: Kept) -> dict[str, str]:
    folders = {"ERASURE_DIR": kept.settings.erasure_dir, "LOG_DIR": kept.settings.log_dir}
    return {"DATABASE_URL": kept.settings.database_url, **{name: str(path) for name, path in folders.items()}}


def test_a_backup_of_somebody_else_opens_nothing_without_its_access(kept: Kept):
    theirs, _ = kept.ledger.api_tokens.create("operate", "mallory")
    kept.ledger.accounts.add(AccountRow("evil", "active", "{}"), "mallory")
    made = kept.backup()
    lose_access(kept)
    kept.forget()
    target = replace(kept.restore_target(), without_access=True)
    done = restoring.restore(made, target, SILENT, None)
    assert done["messages_brought_back"] == 2
    assert (done["tokens_brought_back"], done["accounts_brought_back"]) == ({}, {})
    assert kept.ledger.api_tokens.find(theirs) is None
    assert kept.ledger.accounts.rows() == ()
