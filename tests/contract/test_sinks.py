"""The database sink: every message once, small contents inside, large ones in the blob store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from email_ingestion.blobs import BlobStore, open_blobs, reference
from email_ingestion.errors import ConfigurationError, SinkUnavailable
from email_ingestion.ledger.model import LedgerWrite
from email_ingestion.ledger.store import Ledger, content_of
from email_ingestion.records import Email
from email_ingestion.sinks import SinkMessage, load_sink
from email_ingestion.sinks.database import DatabaseSink
from tests.contract.ledgers import mail, raw_of, sha256

THRESHOLD = 1000
LARGE = bytes(THRESHOLD + 1)
SMALL = bytes(THRESHOLD)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return open_blobs(f"file:{tmp_path}/blobs")


@pytest.fixture
def sink(ledger: Ledger, blobs: BlobStore) -> Iterator[DatabaseSink]:
    with closing(DatabaseSink(ledger, blobs, THRESHOLD)) as opened:
        yield opened


def sink_message(email: Email) -> SinkMessage:
    return SinkMessage(email, raw_of(email.envelope.uid))


def test_a_redelivered_message_is_a_duplicate(sink: DatabaseSink, ledger: Ledger) -> None:
    assert sink.deliver([sink_message(mail(1)), sink_message(mail(2))]) == set()
    assert sink.deliver([sink_message(mail(2)), sink_message(mail(3))]) == {"default:gm:2"}
    assert ledger.count() == 3


def test_contents_go_where_they_fit_and_are_found_there(sink: DatabaseSink, ledger: Ledger, blobs: BlobStore) -> None:
    sink.deliver([sink_message(mail(1, attachments=(SMALL, LARGE)))])
    places = {
        content: (ledger.content(reference(sha256(content))) is not None, blobs.exists(reference(sha256(content))))
        for content in (raw_of(1), SMALL, LARGE)
    }
    assert places == {raw_of(1): (True, False), SMALL: (True, False), LARGE: (False, True)}
    for content in (raw_of(1), SMALL, LARGE):
        assert content_of(reference(sha256(content)), ledger, blobs) == content


def test_raw_bytes_already_in_the_blob_store_are_only_referred_to(
    sink: DatabaseSink, ledger: Ledger, blobs: BlobStore
) -> None:
    ref = blobs.put(raw_of(1))
    sink.deliver([LedgerWrite(mail(1), raw_of(1), ref)])
    assert ledger.raw_ref("default:gm:1") == ref
    assert ledger.content(ref) is None
    assert content_of(ref, ledger, blobs) == raw_of(1)


def test_a_large_raw_message_goes_into_the_blob_store(sink: DatabaseSink, ledger: Ledger, blobs: BlobStore) -> None:
    email = mail(1)
    email = replace(email, envelope=replace(email.envelope, sha256=sha256(LARGE), size=len(LARGE)))
    sink.deliver([SinkMessage(email, LARGE)])
    assert ledger.raw_ref("default:gm:1") == reference(sha256(LARGE))
    assert blobs.get(reference(sha256(LARGE))) == LARGE


def test_a_broken_blob_store_leaves_nothing_in_the_ledger(sink: DatabaseSink, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "blobs").rmdir()
    (tmp_path / "blobs").touch()
    with pytest.raises(SinkUnavailable):
        sink.deliver([sink_message(mail(1)), sink_message(mail(2, attachments=(LARGE,)))])
    assert ledger.count() == 0
    with pytest.raises(SinkUnavailable):
        sink.ping()


def test_a_sound_sink_answers_its_ping(sink: DatabaseSink, tmp_path: Path) -> None:
    sink.ping()
    assert list((tmp_path / "blobs").iterdir()) == []


@dataclass(frozen=True)
class Settings:
    """What the database sink reads of the settings."""

    database_url: str
    blob_url: str
    blob_threshold_bytes: int


@pytest.fixture
def settings(sqlite_url: str, tmp_path: Path) -> Settings:
    return Settings(sqlite_url, f"file:{tmp_path}/blobs", THRESHOLD)


def test_the_database_sink_is_found_by_its_name(settings: Settings) -> None:
    with closing(load_sink("database", settings)) as sink:  # type: ignore[arg-type]
        assert sink.name == "database"
        assert sink.deliver([sink_message(mail(1))]) == set()


@pytest.mark.parametrize("name", ["databse", "kafka", ""])
def test_an_unknown_sink_is_refused_with_valid_names(settings: Settings, name: str) -> None:
    with pytest.raises(ConfigurationError, match="'database'"):
        load_sink(name, settings)  # type: ignore[arg-type]
