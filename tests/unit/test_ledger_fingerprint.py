"""Processes that use the same database compute the same fingerprint."""

from __future__ import annotations

from pathlib import Path

from email_ingestion.ledger.fingerprint import ledger_fingerprint


def test_a_server_is_the_same_whoever_logs_in() -> None:
    fingerprint = ledger_fingerprint("postgresql+psycopg://worker:p%40ss#/?@db.example.com:5432/mail")
    assert fingerprint
    assert fingerprint == ledger_fingerprint("postgresql://producer:other@db.example.com:5432/mail")
    assert fingerprint == ledger_fingerprint("postgresql://db.example.com:5432/mail")
    assert fingerprint != ledger_fingerprint("postgresql://db.example.com:5432/other")
    assert fingerprint != ledger_fingerprint("postgresql://elsewhere.example.com:5432/mail")


def test_a_file_is_the_same_under_every_path(tmp_path: Path) -> None:
    file, other = tmp_path / "mail.db", tmp_path / "other.db"
    assert ledger_fingerprint(f"sqlite:///{file}") is None
    file.touch()
    other.touch()
    (tmp_path / "linked.db").symlink_to(file)
    fingerprint = ledger_fingerprint(f"sqlite:///{file}")
    assert fingerprint
    assert fingerprint == ledger_fingerprint(f"sqlite:///{tmp_path}/linked.db?timeout=3")
    assert fingerprint != ledger_fingerprint(f"sqlite:///{other}")


def test_a_relative_path_is_taken_from_where_the_process_runs(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mail.db").touch()
    monkeypatch.chdir(tmp_path)
    assert ledger_fingerprint("sqlite:///mail.db") == ledger_fingerprint(f"sqlite:///{tmp_path}/mail.db")
